"""``popproxy top`` and ``popproxy trace``: what goes on right now, until one has seen enough."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Annotated

import typer

from popproxy.cli.control import SocketOption, follow
from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption


def top(
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    sort: Annotated[str, typer.Option("--sort", help="rate, octets, time, user, address or server.")] = "rate",
    limit: Annotated[int, typer.Option("--limit", help="Sessions at most.")] = 50,
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="How often, as 2s or 500ms.")] = "2s",
    times: Annotated[int, typer.Option("--times", help="So many looks; 0: until q or Ctrl-C.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each look.")] = False,
) -> None:
    """Show sessions, servers and rates on a screen that keeps up.

    Without a terminal it prints one look, or as many as --times says.

    For example:

        popproxy top --sort octets

        popproxy top --times 1 --json | jq .rates
    """
    from popproxy.admin.screens import repaint, top_screen  # noqa: PLC0415

    screen = sys.stdout.isatty() and not as_json
    times = times or (0 if screen or as_json else 1)
    looks = follow(config, socket, "top", sort=sort, limit=limit, seconds=_seconds(every), times=times)
    with _screen() if screen else contextlib.nullcontext(), contextlib.suppress(KeyboardInterrupt):
        for look in looks:
            if as_json:
                print(json.dumps(look, ensure_ascii=False), flush=True)
            elif screen:
                width, height = shutil.get_terminal_size()
                sys.stdout.write(repaint(top_screen(look, fancy=True, width=width, height=height)))
                sys.stdout.flush()
            else:
                print("\n".join(top_screen(look, fancy=False)), flush=True)


def trace(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose sessions.")],
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="How long, 1h at most.")] = "10m",
    as_json: JsonOption = False,
) -> None:
    """Show what a user's sessions and popproxy say to each other, live: open sessions, new ones, and failed logins.

    Passwords and whatever is no well-formed command are masked; of messages and lists only the octets are counted.
    Beginning and end of it are in the audit log. Ctrl-C ends it.

    For example:

        popproxy trace alice@example.com --for 2m
    """
    from popproxy.admin.screens import trace_lines  # noqa: PLC0415

    fancy = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        for event in follow(config, socket, "trace", user=user, seconds=_seconds(lasting)):
            lines = [json.dumps(event, ensure_ascii=False)] if as_json else trace_lines(event, fancy=fancy)
            print("\n".join(lines), flush=True)


def _seconds(text: str) -> float:
    from popproxy.config.units import parse_duration  # noqa: PLC0415

    try:
        return parse_duration(text)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, where q is as good as Ctrl-C; and back again, whatever happens."""
    from popproxy.admin.screens import ENTER, LEAVE  # noqa: PLC0415

    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = None if keyboard is None else termios.tcgetattr(keyboard)
    sys.stdout.write(ENTER)
    try:
        if keyboard is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # what started us may have had it ignored
            tty.setcbreak(keyboard)
            threading.Thread(target=_wait_for_q, args=(keyboard,), daemon=True).start()
        yield
    finally:
        if keyboard is not None and before is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()


def _wait_for_q(keyboard: int) -> None:
    with contextlib.suppress(OSError):
        while (key := os.read(keyboard, 1)) and key not in b"qQ":
            pass
        if key:
            os.kill(os.getpid(), signal.SIGINT)
