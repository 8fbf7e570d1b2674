"""``popproxy check`` on the control socket: its place, and who may give commands."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.admin.control_socket import bind_control
from popproxy.app.checks.control import check_control
from popproxy.app.checks.finding import Finding
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers.process import public_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with public_directory("check-control") as made:
        made.chmod(0o777)
        yield made


def look(directory: Path, **control: Any) -> list[Finding]:
    config = write_config(directory, control={"socket": str(directory / "control.sock"), **control})
    return check_control(load_file(config).config)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_place_where_it_can_be_made(directory: Path) -> None:
    finding = only(look(directory))
    assert (finding.level, finding.text) == ("ok", f"{directory}/control.sock can be made")


def test_no_socket_is_nothing_to_say(directory: Path) -> None:
    assert look(directory, socket=None) == []


def test_a_directory_that_root_will_make_and_one_that_it_will_not(directory: Path) -> None:
    assert os.geteuid() == 0, "only root makes it: run the tests as root"
    assert only(look(directory, socket=str(directory / "made/control.sock"))).level == "ok"
    finding = only(look(directory, socket=str(directory / "not/made/control.sock")))
    assert finding.level == "warning"
    assert finding.cure == f"install -d -m 750 -o nobody {directory}/not/made"


def test_a_directory_that_the_service_cannot_clean_up(directory: Path) -> None:
    assert os.geteuid() == 0, "to root all directories are open: run the tests as root"
    (directory / "closed").mkdir(mode=0o755)
    findings = look(directory, socket=str(directory / "closed/control.sock"))
    assert [finding.level for finding in findings] == ["ok", "warning"]
    assert findings[1].cure == f"chown nobody {directory}/closed"


def test_what_is_no_socket_stands_in_the_way(directory: Path) -> None:
    (directory / "control.sock").write_text("")
    assert only(look(directory)).level == "problem"


def test_a_running_one_is_named_and_a_dead_one_is_in_nobodys_way(directory: Path) -> None:
    bound = bind_control(directory / "control.sock", None, None)
    assert f"(pid {os.getpid()})" in only(look(directory)).text
    bound.close()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(directory / "control.sock"))
    dead.close()
    assert "can be made" in only(look(directory)).text


@pytest.mark.parametrize(
    ("control", "text", "cure"),
    [
        ({"users": ["no-such-user"]}, "the user no-such-user does not exist", "useradd no-such-user"),
        ({"groups": ["no-such-group"]}, "the group no-such-group does not exist", "groupadd --system no-such-group"),
        ({"group": "no-such-group"}, "the group no-such-group does not exist", "groupadd --system no-such-group"),
        ({"users": ["daemon"]}, "daemon cannot connect, not being in the group nogroup", "usermod -aG nogroup daemon"),
    ],
)
def test_operators_who_could_give_no_commands(directory: Path, control: dict[str, Any], text: str, cure: str) -> None:
    (finding,) = [finding for finding in look(directory, **control) if finding.level != "ok"]
    assert (finding.level, finding.text) == ("problem", text)
    assert cure in finding.cure
