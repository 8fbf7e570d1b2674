"""The benchmarks of Kerberos run from end to end. Nothing here says how fast."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.real


def run(module: str, *options: str) -> str:
    """What it prints, when all goes well."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_logins_are_measured_at_both_proxies() -> None:
    output = run("kerberos_logins", "--rounds", "2", "--logins", "20")
    for name in ("popproxy password", "popproxy KPOP", "Dovecot GSSAPI", "GSSAPI beyond password"):
        assert f"| {name} " in output


def test_lag_is_measured_in_every_state_of_the_kdc() -> None:
    output = run("kerberos_outage", "--seconds", "2")
    rows = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip() for row in rows] == ["healthy", "stopped", "deaf", "healthy again"]
    assert all(int(row[1]) > 0 for row in rows), "no samples of the lag"
    accepted = [int(row[10].split()[0]) for row in rows]
    assert accepted[0] > 0
    assert accepted[1:3] == [0, 0]
