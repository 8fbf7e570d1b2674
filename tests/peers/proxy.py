"""The real `popproxy serve` in a process of its own, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.peers.canaries import WATCH
from tests.peers.certs import CertificateFiles
from tests.peers.process import REPOSITORY, Process, free_port, public_directory, wait_until

POPPROXY = REPOSITORY / ".venv/bin/popproxy"
Record = dict[str, Any]


def settings(
    backend: str,
    certificate: CertificateFiles | None = None,
    *,
    pool: Mapping[str, Any] | None = None,
    listener: Mapping[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """A configuration with one backend on a plain link.

    Listeners: `pop3` takes passwords in clear from loopback and offers STLS if there is a certificate, `pop3s` is
    TLS from the first octet. `pool` and `listener` add to, or replace, what stands there; `sections` are top-level.
    """
    extra = dict(listener or {})
    clear = {
        "name": "pop3",
        "listen": ["127.0.0.1:0"],
        "tls": "stls" if certificate else "none",
        "cleartext_networks": ["127.0.0.0/8"],
        **extra,
    }
    listeners = [clear]
    if certificate:
        listeners.append({"name": "pop3s", "listen": ["127.0.0.1:0"], "tls": "implicit", **extra})
        sections.setdefault("tls", {"certificates": [{"cert": str(certificate.cert), "key": str(certificate.key)}]})
    link = {"servers": [backend], "tls": "none", "allow_cleartext": True, **(pool or {})}
    return {"listeners": listeners, "pools": {"main": link}, **sections}


class Proxy:
    """Starts popproxy and waits until it is ready.

    In `configuration` port 0 of a listener means a free one; see `port`. Audit, log, HTTP and vault are filled in where
    they are left out. `vault` maps users to secrets. Started by root, popproxy becomes nobody
    unless the configuration says otherwise.
    """

    def __init__(
        self,
        directory: Path,
        configuration: Mapping[str, Any],
        *,
        vault: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._ports: dict[str, int] = {}
        self._http = free_port()
        self.configuration = self._complete(configuration, vault is not None)
        self._http = int(self.configuration["http"]["listen"].rpartition(":")[2])
        self.file = directory / "popproxy.yaml"
        self.file.write_text(yaml.safe_dump(self.configuration, sort_keys=False))
        self._environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {})}
        if vault is not None:
            self._fill_vault(vault)
        if os.geteuid() == 0:
            _give_to_nobody(directory)
        self._process = Process(
            "popproxy", [POPPROXY, "serve", "-c", self.file], directory / "stderr.log", directory, self._environment
        )
        self._stopped = False
        self._process.wait_for(self._ready, "popproxy to be ready", 60)

    @property
    def pid(self) -> int:
        """Its process id: the supervisor's."""
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that serve, or have sessions still."""
        return workers_of(self.pid)

    @property
    def worker(self) -> int:
        """The only one of them."""
        (pid,) = self.workers
        return pid

    def port(self, listener: str = "pop3") -> int:
        """Where a listener listens."""
        return self._ports[listener]

    def audit(self, action: str | None = None, *, session: str | None = None) -> list[Record]:
        """The audit records so far, in order; only those of one event.action or session if named."""
        path = Path(self.configuration["audit"]["file"])
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        records: list[Record] = [json.loads(line) for line in lines]
        return [
            record
            for record in records
            if action in (None, record["event.action"]) and session in (None, record.get("session.id"))
        ]

    def sessions(self, count: int = 1) -> list[list[Record]]:
        """Waits until `count` sessions have ended; the records of each ended one, in the order of their end."""
        wait_until(lambda: len(self.audit("session_end")) >= count, f"{count} session_end records")
        records = self.audit()
        ends = [record["session.id"] for record in records if record["event.action"] == "session_end"]
        return [[record for record in records if record.get("session.id") == end] for end in ends]

    def settled(self, since: int = 0) -> list[Record]:
        """Waits until every session in the audit log has ended; the records from number `since` on."""

        def all_ended() -> bool:
            records = self.audit()
            ended = {record["session.id"] for record in records if record["event.action"] == "session_end"}
            return all(record["session.id"] in ended for record in records if "session.id" in record)

        wait_until(all_ended, "the session_end record of every session")
        return self.audit()[since:]

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name and labels as they are written: ``popproxy_sessions{listener="pop3"}``."""
        text = self.get("/metrics")[1]
        samples = re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, flags=re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP request."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def log(self) -> str:
        """Standard error so far."""
        return (self.directory / "stderr.log").read_text(errors="replace")

    def command(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs another popproxy command with this configuration."""
        return subprocess.run(
            [str(POPPROXY), *arguments, "-c", str(self.file)],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            env=self._environment,
            check=False,
        )

    def stop(self, *, status: int = 0) -> None:
        """SIGTERM; AssertionError unless it ends with `status`. Everything it wrote is searched for secrets."""
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(OSError):
            WATCH.text(f"{self.directory}/metrics", self.get("/metrics")[1].encode())
        ended_with = self._process.stop(60)
        for path in (self.directory / "stderr.log", Path(self.configuration["audit"]["file"])):
            WATCH.file(path)
        assert ended_with == status, f"popproxy ended with {ended_with}:\n{self.log()}"
        assert not list(self.directory.glob("core*")), "popproxy left a core dump"
        assert "Traceback" not in self.log(), self.log()
        assert not WATCH.found, "\n".join(WATCH.found)

    def _ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def _complete(self, configuration: Mapping[str, Any], has_vault: bool) -> dict[str, Any]:
        complete: dict[str, Any] = json.loads(json.dumps(configuration))
        for listener in complete["listeners"]:
            for index, address in enumerate(listener["listen"]):
                host, _, port = address.rpartition(":")
                self._ports[listener["name"]] = int(port) or free_port()
                listener["listen"][index] = f"{host}:{self._ports[listener['name']]}"
        complete.setdefault("audit", {}).setdefault("file", str(self.directory / "audit.jsonl"))
        complete.setdefault("http", {}).setdefault("listen", f"127.0.0.1:{self._http}")
        complete.setdefault("logging", {"level": "debug", "format": "json"})
        complete.setdefault("authentication", {}).setdefault("failure_delay", "10ms")
        for limit in ("connections_per_address", "sessions_per_user", "sessions_per_user_and_address"):
            complete.setdefault("limits", {}).setdefault(limit, 5000)
        complete.setdefault("control", {}).setdefault("socket", str(self.directory / "control.sock"))
        complete.setdefault("timeouts", {}).setdefault("drain", "1s")
        if has_vault:
            key = self.directory / "vault.key"
            complete.setdefault("vault", {"file": str(self.directory / "vault"), "key": {"file": str(key)}})
        if os.geteuid() == 0:
            complete.setdefault("process", {"user": "nobody"})
        return complete

    def _fill_vault(self, vault: Mapping[str, str]) -> None:
        for arguments, text in (
            (("vault", "init"), None),
            (("vault", "import", "-"), "".join(f"{user}:{secret}\n" for user, secret in vault.items())),
        ):
            done = self.command(*arguments, text=text)
            assert done.returncode == 0, done.stdout + done.stderr
            WATCH.text("popproxy vault", (done.stdout + done.stderr).encode())


def workers_of(supervisor: int) -> list[int]:
    """The workers of a popproxy, by their process ids."""
    found = []
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().startswith("popproxy "):
                found.append(int(child))
    return found


def _give_to_nobody(directory: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for path in (directory, *directory.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


StartProxy = Callable[..., Proxy]


@contextlib.contextmanager
def proxies() -> Iterator[StartProxy]:
    """Starts any number of proxies, stops them all at the end."""
    with contextlib.ExitStack() as stack:

        def start(configuration: Mapping[str, Any], **options: Any) -> Proxy:
            directory = stack.enter_context(public_directory("proxy"))
            proxy = Proxy(directory, configuration, **options)
            stack.callback(proxy.stop)
            return proxy

        yield start


def fallen(before: dict[str, float], after: dict[str, float]) -> dict[str, tuple[float, float | None]]:
    """The counts among the samples of `Proxy.metrics` that have become less, or are gone."""
    return {
        name: (value, after.get(name)) for name, value in before.items()
        if name.endswith(("_total", "_count", "_sum")) or "_bucket{" in name
        if after.get(name, -1) < value
    }  # fmt: skip
