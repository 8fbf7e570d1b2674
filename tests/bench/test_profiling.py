"""A profile of the proxy under load can be had."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.real


def test_a_profile_counts_the_calls_in_a_session() -> None:
    command = [sys.executable, "-m", "tests.bench.profiling", "--seconds", "1", "--top", "10"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "x whole short sessions" in done.stdout
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    calls = {row[1].strip(): float(row[3]) for row in rows[2:]}
    assert len(calls) == 10
    assert max(calls.values()) >= 8  # once at least for each command of a session
