"""The demo's backend and proxy, running in this process from `staged` until its end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from popproxy.app.service import Service
from popproxy.config.loader import load_file
from popproxy.demo.backend import MaildirServer
from popproxy.demo.kdc import ThrowAwayRealm, missing
from popproxy.demo.realm import Ports, Realm, make_realm
from popproxy.errors import Unavailable
from popproxy.observe.logs import configure
from popproxy.types import Address


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running, and where it listens. `left_out` says why there is no Kerberos, if there is none."""

    realm: Realm
    backend: MaildirServer
    pop3: Address
    pop3s: Address
    http: Address
    kpop: Address | None = None
    tickets: ThrowAwayRealm | None = None
    left_out: str = ""

    def audit(self) -> list[dict[str, Any]]:
        """Every record of the audit log that is complete so far."""
        octets = self.realm.audit.read_bytes() if self.realm.audit.exists() else b""
        return [json.loads(line) for line in octets.split(b"\n")[:-1]]


@contextlib.asynccontextmanager
async def staged(ports: Ports, failure_delay: str = "2s") -> AsyncIterator[Stage]:
    """Start everything, and clean up at the end. Raises Unavailable if a port is taken."""
    _require_free(ports)
    realm = make_realm()
    backend = MaildirServer(realm.accounts())
    tickets, left_out = None, missing() or ""
    outside = os.environ.get("KRB5_CONFIG")
    try:
        if not left_out:
            try:
                tickets = realm.bring_up_tickets()
                os.environ.update(tickets.environment)
            except (Unavailable, OSError) as error:
                left_out = str(error)
        realm.configure(await backend.start(), ports, failure_delay, tickets)
        loaded = load_file(realm.config)
        configure(loaded.config.logging.level, loaded.config.logging.format)
        service = Service(loaded)
        await service.start()
        try:
            assert service.http_address is not None
            listening = {name: addresses[0] for name, addresses in service.addresses.items()}
            yield Stage(
                realm, backend, listening["pop3"], listening["pop3s"], service.http_address, listening.get("kpop"),
                tickets, left_out,
            )  # fmt: skip
        finally:
            await service.stop()
    finally:
        await backend.stop()
        if tickets is not None:
            tickets.stop()
            if outside is None:
                del os.environ["KRB5_CONFIG"]
            else:
                os.environ["KRB5_CONFIG"] = outside
        realm.remove()


def _require_free(ports: Ports) -> None:
    wanted = {"--pop3-port": ports.pop3, "--pop3s-port": ports.pop3s, "--http-port": ports.http}
    if missing() is None:
        wanted["--kpop-port"] = ports.kpop
    for option, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen(1)
            except OSError as error:
                text = f"port {port} of 127.0.0.1 cannot be used: {error.strerror}"
                raise Unavailable(f"{text}; choose another with {option} (0 takes a free one)") from None
