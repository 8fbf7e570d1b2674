"""``popproxy check`` on the token of the status page and on the operators' console."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.checks.finding import Finding
from popproxy.app.checks.operators import check_operators
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers.console import ConsoleClients
from tests.peers.process import public_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with public_directory("check-operators") as made:
        yield made


def look(directory: Path, **sections: Any) -> list[tuple[str, str]]:
    findings: list[Finding] = check_operators(load_file(write_config(directory, **sections)).config)
    return [(finding.level, finding.text) for finding in findings]


def test_a_token_that_can_be_guessed_or_read(directory: Path) -> None:
    token = directory / "token"
    http = {"listen": "127.0.0.1:0", "token": {"file": str(token)}}
    assert look(directory) == []
    assert look(directory, http=http) == [("problem", "http.token.file: there is no such file")]
    token.write_text("short\n")
    token.chmod(0o600)
    assert look(directory, http=http) == [("problem", "http.token: is shorter than 16 octets, and can be guessed")]
    token.write_text("0123456789abcdef\n")
    assert look(directory, http=http) == [("ok", "the token of the status page can be read")]
    token.chmod(0o644)
    assert "every user of the machine can open it" in look(directory, http=http)[0][1]


def test_a_console_with_its_keys_and_what_may_be_wrong_with_them(directory: Path) -> None:
    clients = ConsoleClients(directory, {"alice": "operator"})
    good = [("ok", "the console has its host key"), ("ok", "alice (operator) has keys")]
    assert look(directory, console=clients.section) == good
    keys = directory / "alice.keys"
    keys.chmod(0o666)
    assert look(directory, console=clients.section)[1] == ("problem", f"{keys}: others can write into it (mode 0666)")
    keys.chmod(0o600)
    if os.geteuid() == 0:
        assert look(directory, console=clients.section)[2] == (
            "problem", f"nobody cannot read {keys}, the keys of alice",
        )  # fmt: skip
    keys.unlink()
    assert look(directory, console=clients.section)[1] == ("problem", f"{keys}: No such file or directory")
    host = directory / "host_key"
    host.write_text("no key")
    level, text = look(directory, console=clients.section)[0]
    assert (level, text.partition(":")[0], "is of no use" in text) == ("problem", "console.host_key", True)
