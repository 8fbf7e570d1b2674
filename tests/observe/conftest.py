"""What the tests of the audit log share: a log on a real file, and a disk so small that it fills up."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.observe.audit import AuditLog, AuditTrail, FileSink, Sink
from popproxy.observe.metrics import Metrics
from popproxy.types import Address, SessionId

Record = dict[str, Any]
MakeLog = Callable[..., AuditLog]

CLIENT = Address("192.0.2.17", 51234)
BACKEND = Address("10.0.0.5", 110)


def read_records(path: Path) -> list[Record]:
    """All records of a finished file; every line must be whole, ASCII and a JSON object without duplicate names."""
    text = path.read_bytes().decode("ascii")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, object_pairs_hook=_unique) for line in text.splitlines()]


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), names
    return dict(pairs)


def new_trail(log: AuditLog, session_id: str = "S1") -> AuditTrail:
    return log.trail(SessionId(session_id), "pop3", CLIENT, None)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["pop3"], [str(BACKEND)])


@pytest.fixture
def make_log(metrics: Metrics, tmp_path: Path) -> Iterator[MakeLog]:
    """Makes audit logs; by default on ``audit.log`` in the temporary directory, closed on errors, slow to flush."""
    logs: list[AuditLog] = []

    def make(sink: Sink | None = None, **changes: Any) -> AuditLog:
        settings: dict[str, Any] = {
            "on_error": "closed",
            "flush_interval": 60.0,
            "log_unknown_users": False,
            "version": "0",
        }
        logs.append(AuditLog(sink or FileSink(tmp_path / "audit.log"), metrics, **{**settings, **changes}))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of 64 KiB."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.fail("mounting a tiny tmpfs needs root: run the tests as root, or as `unshare -rm make test`")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)
