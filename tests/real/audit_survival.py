"""``python -m tests.real.audit_survival``: kill popproxy under load, and look for what it has acknowledged in its log.

Clients log in, delete a message and quit, as fast as they can, each session under a name of its own. popproxy is killed
(SIGKILL, it and all its children) in the midst of it and started again on the same log. After every other kill half a
record is put at the end of the log, which a kernel that was interrupted could have left there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from tests.peers.canaries import canary
from tests.peers.line_client import LineClient
from tests.peers.process import free_port, public_directory, wait_until
from tests.peers.proxy import POPPROXY, settings
from tests.peers.scripted import ScriptedBackend, in_thread

CLIENTS = 4


@dataclass
class Survived:
    """What the clients were told, and what verify says."""

    kills: int = 0
    halves: int = 0
    logins: set[str] = field(default_factory=set)
    updates: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    status: int = -1


class Killed:
    """popproxy that is started and killed again and again, on one log."""

    def __init__(self, directory: Path, backend: str) -> None:
        self.log = directory / "audit.jsonl"
        self.port, self._http = free_port(), free_port()
        configuration = settings(backend, listener={"listen": [f"127.0.0.1:{self.port}"]})
        configuration |= {
            "audit": {"file": str(self.log), "key": {"file": str(directory / "audit.key")}, "checkpoint_records": 50},
            "http": {"listen": f"127.0.0.1:{self._http}"}, "control": {"socket": None},
            "limits": dict.fromkeys(("connections_per_address", "sessions_per_user"), 5000),
            "process": {"user": "nobody"} if os.geteuid() == 0 else {}, "timeouts": {"drain": "10ms"},
        }  # fmt: skip
        self.file = directory / "popproxy.yaml"
        self.file.write_text(yaml.safe_dump(configuration))
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        self.command("audit", "key")
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another popproxy command with this configuration."""
        command = [str(POPPROXY), *arguments, "-c", str(self.file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def start(self) -> None:
        """Wait until it is ready."""
        with (self.file.parent / "stderr.log").open("ab") as errors:
            self._process = subprocess.Popen([str(POPPROXY), "serve", "-c", str(self.file)], stderr=errors)
        wait_until(self._ready, "popproxy to be ready", 60)

    def kill(self) -> None:
        """SIGKILL for it and all its descendants."""
        assert self._process is not None
        family = [self._process.pid]
        for process in family:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
                family += [int(child) for child in children]
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait(60)

    def stop(self) -> None:
        """SIGTERM, an orderly end."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.file.parent / "stderr.log").read_text()[-2000:]
        address = f"http://127.0.0.1:{self._http}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
        return False


def log_in(port: int, survived: Survived, names: Iterator[int], until: threading.Event) -> None:
    """One client after another, until it is told to stop."""
    while not until.is_set():
        user = f"user{next(names)}"
        with contextlib.suppress(OSError, EOFError), LineClient(port) as client:
            client.line()
            client.command(f"USER {user}")
            if not client.command(f"PASS {canary()}").startswith(b"+OK"):
                continue
            survived.logins.add(user)
            client.command("DELE 1")
            if client.command("QUIT").startswith(b"+OK"):
                survived.updates.add(user)


def survive(kills: int, seed: int) -> Survived:
    """So many kills, then an orderly end."""
    dice, survived, names = random.Random(seed), Survived(), itertools.count()
    with public_directory("survival") as directory, in_thread(ScriptedBackend([b"x" * 100] * 2)) as backend:
        popproxy = Killed(directory, backend.address)
        for number in range(kills + 1):
            popproxy.start()
            until = threading.Event()
            arguments = (popproxy.port, survived, names, until)
            clients = [threading.Thread(target=log_in, args=arguments) for _ in range(CLIENTS)]
            enough = len(survived.updates) + 5
            for client in clients:
                client.start()
            wait_until(partial(_reached, survived, enough), "sessions that end", 60)
            if number < kills:
                time.sleep(dice.uniform(0, 0.2))
                popproxy.kill()
            until.set()
            for client in clients:
                client.join(60)
            if number == kills:
                popproxy.stop()
            elif number % 2:
                survived.halves += 1
                with popproxy.log.open("ab") as file:
                    file.write(popproxy.log.read_bytes().splitlines()[-1][: dice.randrange(1, 200)])
        survived.kills = kills
        records = [json.loads(line) for line in popproxy.log.read_bytes().splitlines()]
        done = {(record["event.action"], record.get("user.name")) for record in records
                if record.get("event.outcome") == "success"}  # fmt: skip
        survived.missing = [f"login of {user}" for user in survived.logins if ("login", user) not in done]
        survived.missing += [f"update of {user}" for user in survived.updates if ("update", user) not in done]
        verified = popproxy.command("audit", "verify", "--json")
        survived.status, survived.counts = verified.returncode, json.loads(verified.stdout)["counts"]
    return survived


def _reached(survived: Survived, enough: int) -> bool:
    return len(survived.updates) >= enough


def main() -> int:
    """Print what came of it; 1 if something acknowledged is missing, or was classified wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.audit_survival", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    survived = survive(options.kills, options.seed)
    print(f"{survived.kills} kills, {len(survived.logins)} logins and {len(survived.updates)} updates acknowledged")
    print(f"missing in the log: {survived.missing or 'nothing'}")
    print(f"popproxy audit verify: status {survived.status}, {survived.counts}, {survived.halves} half records")
    return int(bool(survived.missing) or not well_told(survived))


def well_told(survived: Survived) -> bool:
    """Each kill and each half record is found, and nothing is taken for tampering. A kill may leave a half one, too."""
    counts = dict(survived.counts)
    mended = counts.pop("mended", 0)
    return survived.status == 3 and counts == {"killed": survived.kills} and survived.halves <= mended <= survived.kills


if __name__ == "__main__":
    sys.exit(main())
