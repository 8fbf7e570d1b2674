"""Two thousand inputs for each fuzz target, and proof that a parser that raises, or is slow, would be noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import STATUS_SLOW
from tests.fuzz.targets import TARGETS
from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.long
RUNS = 2000


def fuzz(target: str, found: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", target, "--runs", str(RUNS), "--seed", "1", "--found", str(found)]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=REPOSITORY, timeout=110, check=False
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_raises(target: str, tmp_path: Path) -> None:
    run = fuzz(target, tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"{target}: {RUNS} inputs, none raised" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_fault_would_be_found(tmp_path: Path) -> None:
    """The fuzzer has to find two octets of its own accord that make a parser raise what nobody expects."""
    run = fuzz("planted", tmp_path)
    assert run.returncode == 77
    assert "ZeroDivisionError" in run.stdout + run.stderr
    (found,) = tmp_path.glob("crash-*")
    assert found.read_bytes().startswith(b"+O")


def test_a_slow_input_would_be_found(tmp_path: Path) -> None:
    run = fuzz("planted-slow", tmp_path, "--runs", "10")
    assert run.returncode == STATUS_SLOW, run.stdout + run.stderr[-2000:]
    assert (tmp_path / "slow-planted-slow").read_bytes().startswith(b"+OK")
