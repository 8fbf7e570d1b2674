"""What the kernel says of a running popproxy: nobody gets at the secrets in its memory, and it can become nothing."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.endurance.watch import family
from tests.peers.process import Process, public_directory, wait_until
from tests.peers.proxy import POPPROXY, StartProxy, settings

pytestmark = pytest.mark.real
NOBODY = pwd.getpwnam("nobody").pw_uid


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def ordinary(pid: int) -> list[int]:
    """Those of its processes that have given up root."""
    return [process for process in family(pid) if status(process)["Uid"].split() == [str(NOBODY)] * 4]


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    setpriv = [str(shutil.which("setpriv")), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run([*setpriv, *command], capture_output=True, text=True, timeout=60, check=False)


def kept(pid: int) -> None:
    """AssertionError unless the process leaves no core dump and lets nobody of its user look into it."""
    core = next(
        line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file")
    )
    assert core.split()[4:6] == ["0", "0"], core
    looked = as_nobody("cat", f"/proc/{pid}/maps")
    assert looked.returncode != 0, "others of its user see its memory"
    assert "Permission denied" in looked.stderr


def test_after_root_is_given_up_nothing_is_left_of_it(start_proxy: StartProxy) -> None:
    proxy = start_proxy(settings("127.0.0.1:1"))
    processes = ordinary(proxy.pid)
    assert processes
    for pid in processes:
        shown = status(pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(shown[kind], 16) == 0, (kind, shown[kind])
        kept(pid)


def test_without_root_its_memory_is_kept_as_well() -> None:
    with public_directory("hardening") as directory:
        configuration = settings(
            "127.0.0.1:1", audit={"file": str(directory / "audit.jsonl")}, http={"listen": None},
            control={"socket": None}, logging={"format": "json"},
        )  # fmt: skip
        (directory / "popproxy.yaml").write_text(yaml.safe_dump(configuration))
        os.chown(directory, NOBODY, NOBODY)
        command = [str(shutil.which("setpriv")), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command += [str(POPPROXY), "serve", "-c", str(directory / "popproxy.yaml")]
        log = directory / "stderr.log"
        process = Process("popproxy", command, log, directory)
        try:
            wait_until(lambda: '"serving"' in log.read_text(), "popproxy to serve")
            for pid in family(process.pid):
                kept(pid)
            process.signal(signal.SIGSEGV)
            wait_until(lambda: process.exit_status is not None, "its death")
            assert not list(directory.glob("core*"))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.stop()
