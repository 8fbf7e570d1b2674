"""``popproxy check``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from popproxy.cli.exits import ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_findings, print_json
from popproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from popproxy.app.checks.finding import Finding


def check(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no backend, KDC, directory or name server.")] = False,
) -> None:
    """Say whether this configuration would work on this machine, and what to do if not.

    Looks at the configuration, the ports, the certificates with their dates, names and keys, the users file and the
    vault, the keytabs, the audit directory, and asks every backend for its greeting, TLS and capabilities, the KDCs for
    keys and clock, and the directories for a user that nobody is called. Changes nothing, sends nobody's password, and
    ends within 15 seconds. Exit code 0 if `popproxy serve` would work, 78 if not.

    For example:

        popproxy check -c /etc/popproxy/popproxy.yaml

        popproxy check --json | jq '.findings[] | select(.level == "problem")'
    """
    import asyncio  # noqa: PLC0415

    findings = asyncio.run(_findings(config, offline))
    failed = any(finding.level == "problem" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings)
    raise typer.Exit(ExitCode.CONFIG if failed else ExitCode.OK)


async def _findings(path: Path, offline: bool) -> list[Finding]:
    from popproxy.app.check import check_environment  # noqa: PLC0415
    from popproxy.app.checks.finding import problem  # noqa: PLC0415
    from popproxy.config.loader import load_file  # noqa: PLC0415

    try:
        loaded = load_file(path)
    except ConfigError as error:
        return [
            problem("configuration", ": ".join(filter(None, (item.where, item.key, item.what))), item.cure)
            for item in error.problems
        ]
    return await check_environment(loaded, offline=offline)
