"""The command ``popproxy``: its sub-commands, and what becomes of errors. Heavy imports stand inside the commands."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated

import typer

from popproxy.cli import (
    audit,
    backends,
    check,
    config,
    demo,
    health,
    live,
    orders,
    passwords,
    penalties,
    process,
    serve,
    sessions,
    vault,
    version,
)
from popproxy.cli import explain as explain_command
from popproxy.cli.exits import ExitCode, complain, explain

_HELP = """An authenticating, auditing POP3 proxy: any mail client in front, any POP3 server behind.

Start with `popproxy demo`: it brings its own mail server and needs no configuration. Then write
/etc/popproxy/popproxy.yaml, let `popproxy check` look it over, and start `popproxy serve`.

Exit codes are those of sysexits.h: 0 all is well, 64 wrong usage, 67 a user would be refused, 69 something is
unavailable, 70 a bug, 66/73/74/77 files, 78 the configuration or the environment is wrong.
"""


def make_app() -> typer.Typer:
    """The command line as a typer application: boxes and colours on a terminal, plain text elsewhere."""
    app = typer.Typer(
        name="popproxy",
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command()(serve.serve)
    app.command()(check.check)
    app.command()(explain_command.explain)
    app.command()(demo.demo)
    app.add_typer(config.app, name="config")
    app.add_typer(vault.app, name="vault")
    app.add_typer(penalties.app, name="penalties")
    app.add_typer(backends.app, name="backends")
    app.add_typer(audit.app, name="audit")
    app.command()(orders.hold)
    app.command()(orders.release)
    app.command()(orders.move)
    app.command()(orders.orders)
    app.command()(process.reload)
    app.command()(process.upgrade)
    app.command()(process.drain)
    app.command()(sessions.who)
    app.command()(sessions.kick)
    app.command()(sessions.stats)
    app.command()(live.top)
    app.command()(live.trace)
    app.command()(health.health)
    app.command("hash-password")(passwords.hash_password)
    app.command()(version.version)
    return app


def _options(
    wanted: Annotated[
        bool, typer.Option("--version", callback=version.asked, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command; the callback does what there is to do."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return its exit code. Raises nothing."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    code: int = ExitCode.OK
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not stumble over it when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _open_standard_streams() -> None:
    """Those that are closed lead nowhere: else the first socket would be standard error, and be told what is wrong."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(opened, True)
            setattr(sys, name, open(opened, "r" if descriptor == 0 else "w"))  # noqa: SIM115 - until the end


def _run(arguments: list[str] | None) -> int:
    try:
        make_app()(arguments, prog_name="popproxy")
    except SystemExit as end:
        if end.code == 2:  # what click and typer use for wrong usage
            return ExitCode.USAGE
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("POPPROXY_TRACEBACK"):
            traceback.print_exc()
        code, lines = explain(error)
        complain(lines)
        return code
    return ExitCode.OK
