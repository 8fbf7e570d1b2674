"""What a proxy has used: CPU time and memory of all its processes, children that have exited included.

A control group counts to the nanosecond. Where none can be made, the times in /proc are added up, in steps of 10 ms.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in nanoseconds. `user` and `system` are what the kernel's ticks say, so they are coarser."""

    total: int = 0
    user: int = 0
    system: int = 0

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.total - other.total, self.user - other.user, self.system - other.system)

    @property
    def user_share(self) -> float:
        """How much of it was spent outside of the kernel, 0 to 1."""
        ticks = self.user + self.system
        return self.user / ticks if ticks else 0.0


class Group:
    """The processes of one target, none as yet. `enter` runs in each new one before exec, `add` in us after it."""

    def enter(self) -> None:
        """Join the group."""

    def add(self, pid: int) -> None:
        """A process has been started."""

    def close(self) -> None:
        """All processes have ended."""

    def cpu(self) -> Cpu:
        """Used since the group was made."""
        return Cpu()

    def pids(self) -> list[int]:
        """Those that live."""
        return []

    def pss_kb(self) -> int:
        """Proportional set size of all of them: shared pages count in parts. Kernel memory is not in it."""
        return sum(map(_pss_kb, self.pids()))

    def rss_kb(self) -> int:
        """What they have resident together."""
        return sum(_status_kb(pid, "VmRSS") for pid in self.pids())

    def peak_rss_kb(self) -> int:
        """The most that each of them has ever had resident, together."""
        return sum(_status_kb(pid, "VmHWM") for pid in self.pids())


class Cgroup(Group):
    """A control group, version 1 (cpuacct) or 2."""

    def __init__(self, path: Path, version: int) -> None:
        self._path, self._version = path, version
        path.mkdir(parents=True, exist_ok=True)

    def enter(self) -> None:
        (self._path / "cgroup.procs").write_text(str(os.getpid()))

    def cpu(self) -> Cpu:
        if self._version == 1:
            return Cpu(*(int((self._path / f"cpuacct.usage{part}").read_text()) for part in ("", "_user", "_sys")))
        words = (self._path / "cpu.stat").read_text().split()
        stat = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        return Cpu(*(1000 * stat[f"{part}_usec"] for part in ("usage", "user", "system")))

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        for path in (self._path, self._path.parent):  # the last group takes the parent with it
            with contextlib.suppress(OSError):
                path.rmdir()


class ProcessTree(Group):
    """Without control groups: utime and stime of all descendants, and of the children they waited for."""

    def __init__(self) -> None:
        self._roots: set[int] = set()
        self._known: dict[int, int] = {}  # pid: start time, because pids come round again

    def add(self, pid: int) -> None:
        self._roots.add(pid)
        self._known[pid] = int(_stat(Path(f"/proc/{pid}/stat"))[19])

    def cpu(self) -> Cpu:
        tick = 10**9 // os.sysconf("SC_CLK_TCK")
        rows = self._rows().values()
        user, system = (sum(row[part] for row in rows) * tick for part in (3, 4))
        return Cpu(user + system, user, system)

    def pids(self) -> list[int]:
        return list(self._rows())

    def _rows(self) -> dict[int, tuple[int, int, int, int, int]]:
        """Our processes: parent, session, start time, user and system ticks."""
        rows: dict[int, tuple[int, int, int, int, int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                f = _stat(path)
                if f[0] != "Z":
                    user, system = (int(f[11 + part]) + int(f[13 + part]) for part in (0, 1))
                    rows[int(path.parent.name)] = (int(f[1]), int(f[3]), int(f[19]), user, system)
        tree = {pid for pid, row in rows.items() if self._known.get(pid) == row[2]}  # orphans too, once they were seen
        sessions = self._roots & tree
        tree |= {pid for pid, row in rows.items() if row[1] in sessions}
        while more := {pid for pid, row in rows.items() if row[0] in tree} - tree:
            tree |= more
        self._known = {pid: rows[pid][2] for pid in tree}
        return {pid: rows[pid] for pid in tree}


@dataclass(frozen=True, slots=True)
class Accounting:
    """How CPU time is counted on this machine: in words, and the maker of a group for a named target."""

    words: str
    group: Callable[[str], Group]


def accounting() -> Accounting:
    """The best there is."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    places = [(1, mount[1]) for mount in mounts if mount[2] == "cgroup" and "cpuacct" in mount[3].split(",")]
    places += [(2, mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    for version, mount in places:
        parent = Path(mount) / f"popproxy-bench-{os.getpid()}"
        with contextlib.suppress(OSError, ValueError, KeyError):
            probe = Cgroup(parent / "probe", version)
            probe.cpu()
            probe.close()
            return _by_control_groups(parent, version)
    return Accounting("times in /proc, steps of 10 ms", lambda _: ProcessTree())


def _by_control_groups(parent: Path, version: int) -> Accounting:
    return Accounting(f"control groups, version {version}", lambda name: Cgroup(parent / name, version))


def _stat(path: Path) -> list[str]:
    return path.read_text().rpartition(")")[2].split()


def _pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(rollup.partition("Pss:")[2].split()[0]) if "Pss:" in rollup else 0
    return 0


def _status_kb(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) if f"{name}:" in status else 0
    return 0
