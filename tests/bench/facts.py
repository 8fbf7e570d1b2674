"""Where and with what a run was made: what a reader must know to judge its figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import REPOSITORY

_PACKAGES = {"nginx": "nginx", "haproxy": "HAProxy", "dovecot-core": "Dovecot", "perdition": "Perdition"}


@dataclass(frozen=True, slots=True)
class Facts:
    """`versions` by program; `rounds` of the scenarios in turn, and of those alone."""

    date: str
    machine: str
    system: str
    commit: str
    versions: dict[str, str]
    accounting: str
    rounds: tuple[int, int]

    def text(self) -> str:
        """One paragraph."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.date}, {self.machine}, {self.system}; {versions}; popproxy at {self.commit}. "
            f"Rounds: {self.rounds[0]} in turn, {self.rounds[1]} alone. CPU time from {self.accounting}."
        )


def facts(accounting: str, rounds: tuple[int, int]) -> Facts:
    """Of this machine, now."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    release = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    return Facts(
        date=time.strftime("%Y-%m-%d"),
        machine=f"{os.cpu_count()} CPUs ({model[1] if model else platform.machine()})",
        system=f"{release[1] if release else 'Linux'}, kernel {platform.release()}",
        commit=_output(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]) or "?",
        versions={"Python": platform.python_version(), **_versions()},
        accounting=accounting,
        rounds=rounds,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package, name in _PACKAGES.items():
        version = _output(["dpkg-query", "-W", "-f", "${Version}", package])
        if version:
            found[name] = re.sub(r"^\d+:|[-+].*", "", version)
    return found


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
