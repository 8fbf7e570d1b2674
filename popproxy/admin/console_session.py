"""What an operator sees in one channel of the console: one command and its exit status, or a prompt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

import asyncssh

from popproxy.admin.commands import Role
from popproxy.admin.desk import Desk, Operator
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.admin.lines import Line, completions, parse_line, usage
from popproxy.admin.screens import ENTER, LEAVE, repaint, top_screen, trace_lines
from popproxy.admin.shown import SHOWN, show_anything

PROMPT = "popproxy> "
_STATUS = {Reason.DENIED: os.EX_NOPERM, Reason.INTERNAL: os.EX_SOFTWARE, Reason.REFUSED: os.EX_NOINPUT}
"""As of the command line, where others are wrong usage."""
_LEAVING = frozenset({"exit", "quit", "logout"})
_GONE = (asyncssh.Error, ConnectionError, asyncssh.BreakReceived, asyncssh.SignalReceived)

Process = asyncssh.SSHServerProcess[str]


class ConsoleSession:
    """One channel."""

    def __init__(self, process: Process, desk: Desk, operator: Operator, idle: float) -> None:
        self._process = process
        self._desk = desk
        self._operator = operator
        self._idle = idle
        self._terminal = bool(process.term_type)  # "" from a client that does not know: no lines are edited then
        self._editor: Any = process.channel  # which edits lines where there is a terminal

    async def run(self) -> None:
        """Until the end; tells the client the exit status."""
        status = os.EX_OK
        with contextlib.suppress(*_GONE):
            if self._process.command is not None:
                status = await self._carry_out(self._process.command)
            else:
                await self._converse()
        with contextlib.suppress(*_GONE):
            self._process.exit(status)

    async def _converse(self) -> None:
        process = self._process
        if self._terminal:
            self._editor.register_key("\t", self._complete)
            self._say(f"popproxy, {self._operator.name} ({self._operator.role}); help, exit")
        while True:
            if self._terminal:
                process.stdout.write(PROMPT)
            try:
                async with asyncio.timeout(self._idle):
                    text = await process.stdin.readline()
            except TimeoutError:
                self._say("\nidle for too long")
                return
            except asyncssh.BreakReceived:
                self._say("")
                continue
            except asyncssh.TerminalSizeChanged:
                continue
            line = text.strip()
            if not text or line in _LEAVING:
                return
            if line:
                await self._carry_out(line)

    async def _carry_out(self, text: str) -> int:
        if text.split()[:1] in (["help"], ["?"], ["--help"]):
            self._help()
            return os.EX_OK
        try:
            line = parse_line(text, self._desk.commands)
        except CommandFailed as error:
            # what could not be read is on record, too
            return await self._answer(Line(" ".join(text.split()[:1]), {}), why=error)
        if line.name == "top":
            live = self._terminal and not line.json
            line.arguments.setdefault("times", 0 if live or line.json else 1)
        return await self._answer(line)

    async def _answer(self, line: Line, why: CommandFailed | None = None) -> int:
        answers = self._desk.answers(line.name, line.arguments, self._operator, why)
        if why is None and self._desk.streams(line.name):
            return await self._stream(line, answers)
        async with contextlib.aclosing(answers):
            return self._show(line, await anext(answers))

    def _show(self, line: Line, answer: dict[str, Any]) -> int:
        """The last answer to a command."""
        error = answer.get("error")
        if error is not None:
            # a terminal has but one stream
            stream = self._process.stdout if self._terminal else self._process.stderr
            stream.write(self._lines([f"popproxy: {error['text']}"]))
            return _STATUS.get(Reason(error["reason"]), os.EX_USAGE)
        if line.json:
            self._say(json.dumps(answer["result"], indent=2, ensure_ascii=False, default=str))
        elif not self._desk.streams(line.name):
            show = SHOWN.get(line.name, show_anything)
            self._say(*show(answer["result"], self._terminal))
        return os.EX_OK

    # ---- streams ----

    async def _stream(self, line: Line, answers: AsyncGenerator[dict[str, object], None]) -> int:
        """Answer after answer, until the command ends or the operator has seen enough: q, Ctrl-C, or he goes."""
        screen = line.name == "top" and self._terminal and not line.json
        showing = asyncio.ensure_future(self._show_all(line, answers, screen))
        enough = asyncio.ensure_future(self._enough())
        gone = asyncio.ensure_future(self._process.channel.wait_closed())
        if self._terminal:
            self._editor.set_echo(False)
            self._editor.set_line_mode(False)
        if screen:
            self._process.stdout.write(ENTER)
        try:
            await asyncio.wait({showing, enough, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (showing, enough, gone):
                task.cancel()
            status, *_ = await asyncio.gather(showing, enough, gone, return_exceptions=True)
            await answers.aclose()
            with contextlib.suppress(*_GONE):
                if screen:
                    self._process.stdout.write(LEAVE)
                if self._terminal:
                    self._editor.set_line_mode(True)
                    self._editor.set_echo(True)
        if isinstance(status, Exception) and not isinstance(status, _GONE):
            raise status
        return status if isinstance(status, int) else os.EX_OK

    async def _show_all(self, line: Line, answers: AsyncGenerator[dict[str, object], None], screen: bool) -> int:
        async for answer in answers:
            event: Any = answer.get("event")
            if event is None:
                return self._show(Line(line.name, {}), answer)
            if line.json:
                self._say(json.dumps(event, ensure_ascii=False, default=str))
            elif screen:
                width, height, *_ = self._process.term_size
                self._process.stdout.write(
                    repaint(top_screen(event, fancy=True, width=width or 80, height=height or 24))
                )
            elif line.name == "top":
                self._say(*top_screen(event, fancy=self._terminal))
            elif line.name == "trace":
                self._say(*trace_lines(event, fancy=self._terminal))
            else:
                self._say(json.dumps(event, ensure_ascii=False, default=str))
            await self._process.stdout.drain()
        return os.EX_OK

    async def _enough(self) -> None:
        """Until q or Ctrl-C is pressed. Without a terminal standard input means nothing: it may be empty."""
        while True:
            try:
                key = await self._process.stdin.read(1)
            except asyncssh.TerminalSizeChanged:
                continue
            except _GONE:
                return
            if not self._terminal and not key:
                await asyncio.get_running_loop().create_future()
            if self._terminal and (not key or key in "qQ\x03\x04"):
                return

    # ---- words ----

    def _say(self, *lines: str) -> None:
        self._process.stdout.write(self._lines(lines))

    def _lines(self, lines: tuple[str, ...] | list[str]) -> str:
        return "".join(f"{line}\n" for line in lines)

    def _help(self) -> None:
        role = self._operator.role or Role.VIEWER
        commands = [self._desk.commands.find(name) for name in self._desk.commands]
        self._say(*(usage(command) for command in commands if role.may(command.role)), "help", "exit")

    def _complete(self, line: str, position: int) -> tuple[str, int] | bool:
        """Tab: as far as there is one way to go on; what there is, if there are several."""
        role = self._operator.role or Role.VIEWER
        before, after = line[:position], line[position:]
        fitting = completions(before, self._desk.commands, role)
        if not fitting:
            return False
        stem, _, last = before.rpartition(" ")
        word = fitting[0] + " " if len(fitting) == 1 else _common(fitting)
        if len(fitting) > 1 and word == last:
            self._process.stdout.write("\n" + "  ".join(fitting) + "\n" + PROMPT)
        done = f"{stem} {word}" if stem else word
        return done + after, len(done)


def _common(words: list[str]) -> str:
    """The beginning that all words have."""
    first, last = min(words), max(words)
    same = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(same, min(len(first), len(last)))]
