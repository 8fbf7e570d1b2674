"""What the service must get to after it has given up root: the directories of the tests, and Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.app.checks import system
from tests.peers.process import public_directory


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not pytest's own: any other run of pytest that starts closes the directory above those to other users."""
    with public_directory("cli") as directory:
        yield directory


@pytest.fixture(autouse=True)
def installation_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may well be run by a Python in /root, which `popproxy check` points out."""
    monkeypatch.setattr(system, "installation", lambda: [Path("/usr")])
