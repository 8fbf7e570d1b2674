"""TRANSACTION and UPDATE: pairs the client's commands with the backend's replies and finds where each reply ends.

Octets of the backend are handed on as they came; the core only says when it must not be so (`receive_from_backend`
returns None for "hand the whole chunk on unchanged", the normal case). That is what keeps a relay that understands
every reply as cheap as one that understands none. `Body` finds the end of what has several lines.
"""

from __future__ import annotations

import re

from popproxy.errors import LocalProtocolError, RemoteProtocolError
from popproxy.pop3 import capabilities, replies
from popproxy.pop3.body import TERMINATOR, Body
from popproxy.pop3.commands import COMMAND_LIMIT, BadCommand, Command, keyword_of, parse, serialise
from popproxy.pop3.exchanged import PLAIN_LIMIT, Exchanged, kind_of, parsed_kind, plain_kind
from popproxy.pop3.lines import LineSplitter, LineTooLong
from popproxy.pop3.states import NEXT, RELAYED, State
from popproxy.pop3.unique_ids import LISTING_LIMIT, UniqueIds

_PLUS = ord("+")
PENDING_LIMIT = 256
"""Commands parsed ahead of their replies.

What a client pipelines beyond that stays in its buffer, then in its socket.
"""
SHORT_BODY = 32 * 1024
"""Octets of a message that is looked for as a whole."""
CAPA_LIMIT = 16 * 1024
"""Octets of a backend's CAPA answer."""
_SIZE = re.compile(rb"(\d{1,12}) octets")  # RFC 1939's example, and most servers' way to say it
_KEPT = {"UIDL": LISTING_LIMIT, "CAPA": CAPA_LIMIT}


class Exchange:
    """The dialogue of one session after its login.

    `pipelining`: the backend takes several commands at once. `before` is the capability list promised before the login,
    `declared` what the pool says its servers can do (used where the backend knows no CAPA).
    """

    __slots__ = (
        "_before", "_body", "_client_eof", "_declared", "_lines", "_lone", "_outstanding", "_partial", "_pipelining",
        "_unique_ids", "_unsent", "_waiting_for", "deleted",
        "events", "highest", "state", "violation",
    )  # fmt: skip

    def __init__(
        self, *, pipelining: bool, before: capabilities.Capabilities, declared: capabilities.Capabilities
    ) -> None:
        self.state = State.TRANSACTION
        self.events: list[Exchanged] = []  # completed; the relay empties it
        self.violation: RemoteProtocolError | None = (
            None  # the backend broke the protocol; what came before it still counts
        )
        self.deleted: dict[int, bytes | None] = {}  # marked and not unmarked: message number → unique-id if it was seen
        self.highest = 0  # for LAST
        self._pipelining = pipelining
        self._before = before
        self._declared = declared
        self._lines: LineSplitter | None = None  # only for a client that does not write plain commands
        self._unsent: list[Exchanged] = []  # parsed, not yet handed to the backend
        self._outstanding: list[Exchanged] = []  # their replies are due, in this order
        self._waiting_for = 0  # how many of those are the backend's to answer
        self._lone: Exchanged | None = None  # the one of them that goes and comes back alone, in lock-step
        self._client_eof = False
        self._body: Body | None = None  # of the reply that has begun
        self._partial = b""  # the beginning of a status line
        self._unique_ids: UniqueIds | None = None  # made by the first answer to UIDL

    # ---- from the client ----

    def receive_from_client(self, data: bytes | bytearray | memoryview) -> None:
        """Take octets from the client."""
        self._lone = None
        if not self._lines:
            data = bytes(data)
            taken = self._take_plain(data)
            if taken == len(data):
                return
            data = data[taken:]
        if self._lines is None:
            self._lines = LineSplitter(COMMAND_LIMIT)
        self._lines.feed(data)
        self._parse()

    def take_lone_command(self, data: bytes) -> bool:
        """Lock-step, the way most clients work: one plain command while nothing is under way.

        True if it is so; `data` then goes to the backend as it is. Else it is for `receive_from_client`.
        """
        if self._outstanding or self._unsent or self._lines or len(data) > PLAIN_LIMIT:
            return False
        kind = plain_kind(data)
        if kind is None or kind.verb == "QUIT" or self.state is not State.TRANSACTION:
            return False
        command = Exchanged(kind, data)
        self._outstanding.append(command)
        self._waiting_for = 1
        if not kind.peculiar:
            self._lone = command
        return True

    def _take_plain(self, data: bytes) -> int:
        """Take commands from the beginning of `data` while they are plain. Returns the octets taken."""
        unsent, at = self._unsent, 0
        if self.state is not State.TRANSACTION or (unsent and unsent[-1].verb == "QUIT"):
            return 0
        room = PENDING_LIMIT - len(unsent) - len(self._outstanding)
        while room > 0 and (end := data.find(b"\n", at, at + PLAIN_LIMIT) + 1):
            line = data[at:end]
            kind = plain_kind(line)
            if kind is None:
                break
            unsent.append(Exchanged(kind, line))
            at = end
            if kind.verb == "QUIT":
                break
            room -= 1
        return at

    def receive_client_eof(self) -> None:
        """The client will send no more."""
        self._client_eof = True
        self._lone = None

    def commands_to_send(self, *, client_drained: bool) -> bytes:
        """Octets for the backend now. `client_drained`: all earlier replies are in the client's socket.

        QUIT is a barrier: it leaves only when every earlier reply has been handed over in full, since it makes
        deletions final that the client may not have the messages for.
        """
        if self._lines:
            self._parse()
        unsent = self._unsent
        if not unsent:
            return b""
        out = []
        sent = 0
        for command in unsent:
            if command.line is not None:
                if command.verb == "QUIT":
                    if self._outstanding or not client_drained:
                        break
                    self._move(State.UPDATE)
                elif self._waiting_for and not self._pipelining:
                    break
                self._waiting_for += 1
                out.append(command.line)
            self._outstanding.append(command)
            sent += 1
        del unsent[:sent]
        return b"".join(out)

    def local_answers(self) -> bytes:
        """The proxy's own answers whose turn has come."""
        if not self._outstanding or self._outstanding[0].line is not None:
            return b""
        out = []
        while self._outstanding and self._outstanding[0].line is None:
            command = self._outstanding.pop(0)
            command.ok = command.answer is None
            out.append(replies.ok(f"{self.highest}") if command.answer is None else command.answer)
            self.events.append(command)
        return b"".join(out)

    @property
    def backlogged(self) -> bool:
        """True while the client should not be read."""
        return len(self._unsent) + len(self._outstanding) >= PENDING_LIMIT or self.state is not State.TRANSACTION

    @property
    def awaiting(self) -> Exchanged | None:
        """The command whose reply is due from the backend, if any."""
        return next((command for command in self._outstanding if command.line is not None), None)

    @property
    def inside_body(self) -> bool:
        """True between the status line and the final dot of a multi-line reply that is handed on as it comes."""
        return self._body is not None and self._outstanding[0].verb != "CAPA"

    @property
    def quit_waiting(self) -> bool:
        """True if the client has said QUIT and it has not gone to the backend."""
        return bool(self._unsent) and self._unsent[-1].verb == "QUIT"

    @property
    def settled(self) -> bool:
        """True if nothing is under way and nothing is left to be looked at."""
        return not (self._outstanding or self._unsent or self._client_eof or self._lines or self.violation)

    @property
    def idle(self) -> bool:
        """True if nothing is under way: no command unsent, no reply due."""
        return not self._outstanding and not self._unsent

    @property
    def client_finished(self) -> bool:
        """True if the client has closed its side and all it asked for is answered."""
        if not self._client_eof:
            return False
        self._parse()  # so many commands may have been pipelined that some are still unread
        return self.idle

    def unique_id(self, number: int) -> bytes | None:
        """The unique-id of a message, if a UIDL reply has named it in this session."""
        return None if self._unique_ids is None else self._unique_ids.find(number)

    def _parse(self) -> None:
        if self._lines is None:
            return
        while not self.backlogged and not self.quit_waiting:
            try:
                line = self._lines.next_line()
            except LineTooLong:
                self._refuse("OTHER", "line too long")
                continue
            if line is None:
                return
            try:
                self._accept(parse(line))
            except BadCommand as error:
                self._refuse(keyword_of(line), str(error))

    def _accept(self, command: Command) -> None:
        if command.verb in RELAYED:
            self._unsent.append(Exchanged(parsed_kind(command), serialise(command)))
        elif command.verb == "LAST":
            self._unsent.append(Exchanged(kind_of(command.verb), None))
        else:
            raise BadCommand("already logged in")

    def _refuse(self, verb: str, text: str) -> None:
        if verb == "QUIT":
            verb = "OTHER"  # QUIT with an argument is no QUIT: nobody may take it for the end
        self._unsent.append(Exchanged(kind_of(verb), None, replies.err(text)))

    # ---- from the backend ----

    def take_lone_reply(self, buffer: bytes | bytearray, end: int) -> bool:
        """Lock-step: ``buffer[:end]`` is just one whole plain reply to the one command under way.

        True if it is so: it goes to the client as it is, and `events` has the command. Else it is for
        `receive_from_backend`.
        """
        head, self._lone = self._lone, None
        if head is None:
            return False
        line = replies.PLAIN_LINE.match(buffer, 0, end)
        if line is None:
            return False
        body = line.end()
        if body > replies.STATUS_LIMIT:
            return False
        if buffer[0] == _PLUS:
            if head.multiline:
                # the CRLF of the status line is the beginning of the mark that ends an empty body
                if not buffer.endswith(TERMINATOR, body - 2, end) or buffer.rfind(TERMINATOR, body - 2, end - 1) >= 0:
                    return False
                head.octets = end - body - 3
            elif body != end:
                return False
            head.ok = True
            self._take_effect(head)
        elif body != end:
            return False
        self._outstanding.clear()
        self._waiting_for = 0
        self.events.append(head)
        return True

    def receive_from_backend(self, buffer: bytes | bytearray, end: int) -> bytes | None:
        """Take ``buffer[:end]`` from the backend. Returns what goes to the client; None means just that, unchanged.

        After it look at `events` (replies now complete), `violation`, `local_answers` and `commands_to_send`.
        """
        self._lone = None
        if self._body is not None and self._body.take_all(buffer, end):
            return None
        out: list[bytes | memoryview] = []
        changed = False
        view = memoryview(buffer)
        pos = 0
        while pos < end and self.violation is None:
            if not self._waiting_for:
                self.violation = RemoteProtocolError("octets that answer nothing", reason="unsolicited")
                break
            body = self._body
            if body is None and not self._partial and (stop := self._take_whole_replies(buffer, pos, end)) > pos:
                out.append(view[pos:stop])
                pos = stop
                continue
            head = self._outstanding[0]
            if head.line is None:
                changed = True
                out.append(self.local_answers())
                continue
            if body is not None:
                stop = body.take(buffer, pos, end)
                start, pos = pos, end if stop < 0 else stop
                if head.verb == "CAPA":
                    changed = True
                    if body.overflowed:
                        self.violation = RemoteProtocolError("endless CAPA", reason="oversize")
                else:
                    out.append(view[start:pos])
                complete = stop >= 0
            else:
                newline = buffer.find(b"\n", pos, end)
                start, pos = pos, end if newline < 0 else newline + 1
                shown = self._status_octets(head, bytes(view[start:pos]), whole=newline >= 0)
                if shown is None:
                    out.append(view[start:pos])
                else:
                    changed = True
                    out.append(shown)
                complete = newline >= 0 and self._body is None
            if complete and self.violation is None:
                answers = self._complete(head)
                if answers:
                    changed = True
                    out.append(answers)
        if self.violation is None and (answers := self.local_answers()):
            changed = True
            out.append(answers)
        return b"".join(out) if changed or self.violation else None

    def _take_whole_replies(self, buffer: bytes | bytearray, pos: int, end: int) -> int:
        """Take plain replies that lie whole in ``buffer[pos:end]``, up to the first that is another. Where they end."""
        taken = 0
        for head in self._outstanding:
            if head.peculiar or head.line is None:
                break
            line = replies.PLAIN_LINE.match(buffer, pos, end)
            if line is None:
                break
            stop = line.end()
            if stop - pos > replies.STATUS_LIMIT:
                break
            if buffer[pos] == _PLUS:
                if head.multiline:
                    # the CRLF of the status line is the beginning of the mark that ends an empty body; a long body is
                    # left to `rfind`, which is faster
                    mark = buffer.find(TERMINATOR, stop - 2, min(end, stop + SHORT_BODY))
                    if mark < 0:
                        break
                    head.octets = mark + 2 - stop
                    stop = mark + 5
                head.ok = True
                self._take_effect(head)
            pos = stop
            taken += 1
        if taken:
            self.events += self._outstanding[:taken]
            del self._outstanding[:taken]
            self._waiting_for -= taken
        return pos

    @property
    def octets_to_come(self) -> int:
        """Octets that are still expected of the message under way, by the size that the server has announced.

        0 where several commands are under way: what comes may be another reply then.
        """
        body = self._body
        return 0 if body is None or len(self._outstanding) != 1 else max(0, body.announced - body.octets)

    def skip_body(self, octets: int) -> None:
        """So many octets of the message under way were handed on unseen; its end was not among them."""
        assert self._body is not None
        self._body.skip(octets)

    def _status_octets(self, head: Exchanged, octets: bytes, *, whole: bool) -> bytes | None:
        """Take (the beginning of) a status line.

        Returns what the client sees instead of it, None for the line itself.
        """
        partial, self._partial = self._partial, b""
        line = partial + octets
        if len(line) > replies.REPLY_LINE_LIMIT:
            self.violation = RemoteProtocolError("endless status line", reason="oversize")
            return b""
        if not whole:
            self._partial = line
            return b""
        bare = line[:-2] if line.endswith(b"\r\n") else line[:-1]
        try:
            status = replies.parse_status(bare)
        except RemoteProtocolError as error:
            self.violation = error
            return b""
        head.ok = status.ok
        if status.ok and head.multiline:
            size = _SIZE.match(status.text) if head.verb == "RETR" else None
            self._body = Body(_KEPT.get(head.verb, 0), int(size[1]) if size else 0)
        elif status.ok and head.verb == "UIDL":
            self._uidl().take_single(status.text)
        shown = replies.clean(bare, status)
        if head.verb == "QUIT":
            head.reply = shown
            return b""
        if head.verb == "CAPA":
            return b""
        return None if shown == line and not partial else shown

    def _uidl(self) -> UniqueIds:
        self._unique_ids = self._unique_ids or UniqueIds()
        return self._unique_ids

    def _complete(self, head: Exchanged) -> bytes:
        """The reply to `head` has ended.

        Returns what the client gets besides: a merged CAPA.
        """
        del self._outstanding[0]
        self._waiting_for -= 1
        answers = b""
        body, self._body = self._body, None
        kept = None if body is None else body.kept
        if body is not None:
            head.octets = body.octets - 3  # the final dot and its CRLF
        verb = head.verb
        if verb == "CAPA":
            own = capabilities.parse_body(bytes(kept)) if head.ok and kept else None
            answers = capabilities.render(
                capabilities.after_login(self._before, self._declared if own is None else own)
            )
            head.ok = True
        elif verb == "UIDL" and kept is not None:
            self._uidl().take_listing(bytes(kept))
        elif head.ok:
            self._take_effect(head)
        self.events.append(head)
        if verb == "QUIT":
            self._move(State.CLOSED)
        return answers

    def _take_effect(self, head: Exchanged) -> None:
        """The backend has done what `head` asks."""
        verb, number = head.verb, head.number
        if number is not None:
            if verb == "RETR":
                self.highest = max(self.highest, number)
            elif verb == "DELE":
                self.highest = max(self.highest, number)
                self.deleted[number] = self.unique_id(number)
        elif verb == "RSET":
            head.restored = len(self.deleted)
            self.deleted.clear()
            self.highest = 0

    def cut(self) -> Exchanged | None:
        """The backend is gone: the reply under way, with the octets that came of it, or None between replies."""
        if self._body is None or not self.inside_body:
            return None
        head = self._outstanding[0]
        head.octets = self._body.octets
        return head

    def _move(self, state: State) -> None:
        if state not in NEXT[self.state]:
            raise LocalProtocolError(f"no way from {self.state.name} to {state.name}")
        self.state = state
