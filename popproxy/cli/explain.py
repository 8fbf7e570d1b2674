"""``popproxy explain``."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, styled

if TYPE_CHECKING:
    from popproxy.app.explanation import Explained, Explanation
    from popproxy.config.loader import Loaded

_MARKS = {"done": ("+", "32"), "passed": ("-", "2"), "refused": ("x", "31"), "open": ("?", "33")}
_WIDTH = 88
"""Columns for text; what is longer pushes its line number to the right."""


def explain(
    name: Annotated[str, typer.Argument(metavar="PRINCIPAL|USER", help="alice@EXAMPLE.COM, or a user's name.")],
    config: ConfigOption = DEFAULT_CONFIG,
    listener: Annotated[
        str | None,
        typer.Option(
            "--listener", "-l", metavar="NAME", help="Where the client comes; the first that fits by default."
        ),
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask the directories of routing where the user's mail is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what would become of somebody who logs in, step by step, without logging in.

    What the name is taken for, which rules were tried and which decided (with their lines in the configuration), the
    mailbox, the account in the users file, the route, the servers in order, how popproxy would log in there, and what
    operators have ordered (hold, move, drain). Reads the files that the configuration names, and asks nobody: neither
    the KDC nor a server, and directories only with --ask.

    Marks: + it goes on, - tried but does not apply, ? depends on others, x it ends here. Exit code 0 if the user would
    get in (with the right password or ticket), 67 if not, 78 if the configuration leaves no way.

    For example:

        popproxy explain alice@EXAMPLE.COM

        popproxy explain alice --listener pop3s -c /etc/popproxy/popproxy.yaml

        popproxy explain alice@example.com --ask

        popproxy explain bob/admin@EXAMPLE.COM --json | jq .result
    """
    from popproxy.app.asked_places import ask_place  # noqa: PLC0415
    from popproxy.app.explain import NoSuchListener  # noqa: PLC0415
    from popproxy.app.explain import explain as find_out  # noqa: PLC0415
    from popproxy.config.loader import load_file  # noqa: PLC0415

    loaded = load_file(config)
    try:
        found = find_out(loaded, name, listener, partial(ask_place, loaded) if ask else None)
    except NoSuchListener as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if as_json:
        print_json(_as_json(found, loaded))
    else:
        sys.stdout.write(_as_text(found, loaded))
    codes = {"let in": ExitCode.OK, "refused": ExitCode.NOUSER, "not set up": ExitCode.CONFIG}
    raise typer.Exit(codes[found.verdict])


def _as_json(found: Explanation, loaded: Loaded) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "listener": found.listener,
        "mailbox": found.mailbox,
        "pool": found.pool,
        "backend_user": found.backend_user,
        "strategy": found.strategy,
        "verdict": found.verdict,
        "result": found.result,
        "steps": [
            {
                "stage": one.stage,
                "outcome": one.step.outcome,
                "text": one.step.text,
                "where": loaded.where(one.step.key) if one.step.key else "",
            }
            for one in found.steps
        ],
    }


def _as_text(found: Explanation, loaded: Loaded) -> str:
    fancy = sys.stdout.isatty()
    width = min(_WIDTH, max(len(one.step.text) for one in found.steps))
    lines, before = [], ""
    for one in found.steps:
        lines.append(_line(one, loaded, before, width, fancy))
        before = one.stage
    verdict = f"{found.verdict}: {found.result}" if found.verdict != "let in" else found.result
    return "\n".join([*lines, "", verdict, ""])


def _line(one: Explained, loaded: Loaded, before: str, width: int, fancy: bool) -> str:
    stage = one.stage if one.stage != before else ""
    mark, colour = _MARKS[one.step.outcome]
    where = f"  line {loaded.where(one.step.key).rpartition(':')[2]}" if one.step.key else ""
    text = f"{one.step.text:<{width}}{where}".rstrip()
    return f"{styled(f'{stage:<9}', '1', fancy)} {styled(mark, colour, fancy)} {text}"
