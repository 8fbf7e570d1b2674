"""The micro-benchmarks run; what they show is for people to read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.cores import CORES, seconds
from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", CORES)
async def test_a_core_can_be_timed_again_and_again(name: str) -> None:
    operation = CORES[name].make()
    assert seconds(operation, 1) >= 0
    assert seconds(operation, 2) >= 0


def micro(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench.micro", "--repeats", "1", "--only", "splitter", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_two_checkouts_are_compared() -> None:
    done = micro("--against", str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    head, _, row = done.stdout.splitlines()
    assert "here to there" in head
    assert row.startswith("| splitter ")


def test_a_checkout_that_lacks_a_core_is_reported(tmp_path: Path) -> None:
    (tmp_path / "popproxy").mkdir()
    (tmp_path / "popproxy/__init__.py").touch()
    done = micro("--against", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "splitter: ModuleNotFoundError: No module named 'popproxy.pop3'\n")
