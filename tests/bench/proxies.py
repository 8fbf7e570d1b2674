"""The proxies that are measured: how each is configured and started. The templates say what they are set up to do."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench.accounting import Accounting
from tests.bench.setups import DEFAULT, SETUPS, SPLICE, sections_of
from tests.bench.target import Ports, Target
from tests.bench.tools import HERE, Tools
from tests.peers.certs import Authority
from tests.peers.process import REPOSITORY, require

TEMPLATES = HERE / "templates"


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy from Debian. One daemon for each of `variants`, which are values for the template.

    `setups` are values that differ in set-ups other than the default.
    """

    template: str
    program: str
    arguments: tuple[str, ...]
    variants: tuple[Mapping[str, str], ...]
    most_idle: int = 9000
    setups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_DOVECOT = {"service_count": "0", "process_min_avail": "1", "process_limit": "1", "client_limit": "9900"}
PEERS = {
    "nginx": Peer("nginx.conf.in", "nginx", ("-c", "@config@"), ({"proxy_buffer": "4k"},)),
    "nginx_64k": Peer("nginx.conf.in", "nginx", ("-c", "@config@"), ({"proxy_buffer": "64k"},)),
    "haproxy": Peer(
        "haproxy.cfg.in",
        "haproxy",
        ("-W", "-f", "@config@"),
        ({"splice": "no option"},),
        setups={SPLICE: {"splice": "option"}},
    ),
    "dovecot": Peer("dovecot.conf.in", "dovecot", ("-F", "-c", "@config@"), (_DOVECOT,)),
    "perdition": Peer(
        "perdition.conf.in",
        "perdition",
        ("-f", "@config@"),
        ({"listen": "@port@", "ssl_mode": "none"}, {"listen": "@tls_port@", "ssl_mode": "ssl_listen"}),
        most_idle=1000,
    ),
}


@dataclass(frozen=True, slots=True)
class Cpus:
    """Which CPUs the proxies run on, and which the load, the backend and this program."""

    proxy: set[int]
    load: set[int]


class Contender:
    """A proxy by its name in the tables, with what makes it for each of its set-ups."""

    def __init__(self, name: str, setups: Mapping[str, Callable[[], Target]]) -> None:
        self.name = name
        self._setups = setups
        self._targets: dict[str, Target] = {}

    def target(self, setup: str) -> Target | None:
        """It in this set-up, not yet started the first time; None if it has no such set-up."""
        if setup in self._setups and setup not in self._targets:
            self._targets[setup] = self._setups[setup]()
        return self._targets.get(setup)

    def stop(self) -> None:
        """All of it."""
        for target in self._targets.values():
            target.stop()


class Proxies:
    """Makes the targets of one run: gives them ports, writes their configuration into the run's directory."""

    def __init__(self, directory: Path, programs: Tools, accounting: Accounting, cpus: Cpus) -> None:
        self._directory = directory
        self._accounting = accounting
        self._cpus = cpus
        self._last_port = random.randrange(20000, 26000)  # below those that clients get from the kernel
        certificate = Authority(directory).server()
        certificate.key.chmod(0o644)  # for daemons that read it as somebody else; it is worth nothing
        both = directory / "server.pem"
        both.write_text(certificate.cert.read_text() + certificate.key.read_text())
        backend, auth = self._free_port(), self._free_port()
        self._values = {
            "backend_port": str(backend), "auth_port": str(auth), "cert": str(certificate.cert),
            "key": str(certificate.key), "pem": str(both),
        }  # fmt: skip
        self.backend = self._target(
            "backend", [[str(programs.backend), str(backend), str(auth)]], Ports(backend), cpus.load
        )

    def peer(self, name: str) -> Contender:
        """One of `PEERS`."""
        setups = [DEFAULT, *PEERS[name].setups]
        return Contender(name, {setup: partial(self._peer, name, setup) for setup in setups})

    def popproxy(self, name: str, tree: Path = REPOSITORY) -> Contender:
        """popproxy as it is in `tree`, run by the virtual environment there if it has one, else by ours."""
        return Contender(name, {setup: partial(self._popproxy, name, tree, setup) for setup in SETUPS})

    def _peer(self, name: str, setup: str) -> Target:
        peer, commands = PEERS[name], []
        directory = f"{name}-{setup}"
        ports = Ports(self._free_port(), self._free_port())
        values = self._place(directory, ports)
        for number, variant in enumerate(peer.variants):
            own = {**values, **variant, **peer.setups.get(setup, {})}
            config = self._write(directory, f"{number}.conf", peer.template, own)
            arguments = [config if word == "@config@" else word for word in peer.arguments]
            commands.append([require(peer.program), *arguments])
        target = self._target(name, commands, ports, self._cpus.proxy, directory)
        target.most_idle = peer.most_idle
        return target

    def _popproxy(self, name: str, tree: Path, setup: str) -> Target:
        ports = Ports(self._free_port(), self._free_port(), self._free_port())
        directory = f"{name}-{setup}"
        values = {**self._place(directory, ports), **sections_of(tree), **SETUPS[setup].values}
        config = self._write(directory, "popproxy.yaml", "popproxy.yaml.in", values)
        own = tree / ".venv/bin/python"
        python = [str(own if own.exists() else sys.executable), "-m", "popproxy"]
        target = self._target(name, [[*python, "serve", "-c", config]], ports, self._cpus.proxy, directory)
        target.environment = {"PYTHONPATH": str(tree)}
        SETUPS[setup].prepare(target.directory)
        return target

    def _free_port(self) -> int:
        while True:
            self._last_port += 1
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", self._last_port))
                return self._last_port

    def _target(
        self, name: str, commands: list[list[str]], ports: Ports, cpus: set[int], directory: str | None = None
    ) -> Target:
        place = self._directory / (directory or name)
        place.mkdir(exist_ok=True)
        return Target(name, commands, ports, cpus, place, self._accounting.group)

    def _place(self, name: str, ports: Ports) -> dict[str, str]:
        """Makes a target's directory; all values for its template."""
        directory = self._directory / name
        directory.mkdir()
        directory.chmod(0o777)  # daemons that have dropped root write there
        listens = {"port": ports.plain, "tls_port": ports.tls, "http_port": ports.http}
        return {**self._values, "name": name, "dir": str(directory), **{key: str(p) for key, p in listens.items()}}

    def _write(self, name: str, file: str, template: str, values: Mapping[str, str]) -> str:
        text = (TEMPLATES / template).read_text()
        for _ in range(2):  # a value may itself name a value
            text = re.sub(r"@(\w+)@", lambda word: values.get(word[1], word[0]), text)
        config = self._directory / name / file
        config.write_text(text)
        return str(config)
