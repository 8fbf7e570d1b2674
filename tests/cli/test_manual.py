"""The manual pages say what the program says, are good troff, and come with the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from popproxy.config.fields import all_fields
from tests.peers.process import REPOSITORY, require

PAGES = REPOSITORY / "config" / "man"
INSTALLED = {"popproxy.1": "share/man/man1/popproxy.1", "popproxy.yaml.5": "share/man/man5/popproxy.yaml.5"}


def run(*command: str) -> str:
    """What it complains of; AssertionError unless it ends with 0."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stderr


@pytest.mark.long
def test_the_pages_are_those_that_the_program_makes(tmp_path: Path) -> None:
    run(sys.executable, "tests/setup/manual.py", str(tmp_path))
    for name in INSTALLED:
        assert (PAGES / name).read_text() == (tmp_path / name).read_text(), f"{name} is old; run: make man"


@pytest.mark.real
@pytest.mark.parametrize("name", INSTALLED)
def test_the_pages_are_good_troff(name: str, tmp_path: Path) -> None:
    assert run(require("mandoc"), "-Tlint", "-W", "warning", str(PAGES / name)) == ""
    assert run(require("man"), "--warnings", "--encoding=UTF-8", "--local-file", str(PAGES / name)) == ""
    broken = tmp_path / name
    broken.write_text((PAGES / name).read_text() + ".NONSENSE\n.TP\n")
    ended = subprocess.run([require("mandoc"), "-Tlint", str(broken)], capture_output=True, text=True, check=False)
    assert ended.returncode != 0


@pytest.mark.long
def test_every_command_and_every_key_is_there(tmp_path: Path) -> None:
    run(sys.executable, "tests/setup/manual.py", str(tmp_path))
    commands, keys = ((tmp_path / name).read_text() for name in INSTALLED)
    for command in ("serve", "audit search", "penalties clear", "vault import", "kick"):
        assert f"\n.SS popproxy {command}" in commands
    missing = [
        path for path, _ in all_fields()
        if rf"\fB{path.replace('<name>', 'NAME').replace('-', chr(92) + '-')}\fR" not in keys
    ]  # fmt: skip
    assert missing == []


@pytest.mark.long
def test_the_wheel_installs_them(tmp_path: Path) -> None:
    run(str(Path(sys.executable).with_name("hatchling")), "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for page, place in INSTALLED.items():
            (found,) = [name for name in names if name.endswith(f".data/data/{place}")]
            assert archive.read(found) == (PAGES / page).read_bytes()
