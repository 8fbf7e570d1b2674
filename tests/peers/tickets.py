"""A realm with one user and our service in it, the real acceptors, and the client's end of a GSS context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gssapi
import pytest

from popproxy.kerberos.acceptor import Acceptor, GssContext
from popproxy.kerberos.apreq import ApReqVerifier
from popproxy.sasl.gssapi import GssapiExchange, LayerOffer
from popproxy.sasl.mechanism import Challenge, NeedStep
from popproxy.state.executors import BoundedExecutor
from tests.peers.kdc import Realm, realm

Flag = gssapi.RequirementFlag
LAYERED = Flag.mutual_authentication | Flag.integrity | Flag.confidentiality | Flag.out_of_sequence_detection
SERVICE = "pop/localhost"


class Initiator:
    """A client with a ticket. `flags` are what it asks for; MIT's library adds integrity and confidentiality itself."""

    def __init__(self, ccache: Path, flags: int = LAYERED | Flag.replay_detection) -> None:
        credentials = gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{ccache}"})
        name = gssapi.Name("pop@localhost", gssapi.NameType.hostbased_service)
        self._context = gssapi.SecurityContext(name=name, creds=credentials, flags=flags, usage="initiate")

    def step(self, token: bytes | None = None) -> bytes | None:
        """The next token."""
        answer: bytes | None = self._context.step(token)
        return answer

    @property
    def complete(self) -> bool:
        """Established on this side."""
        return bool(self._context.complete)

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        """A token with `data`."""
        message: bytes = self._context.wrap(data, confidential).message
        return message

    def sign(self, data: bytes) -> bytes:
        """A signature of `data`, without it."""
        signature: bytes = self._context.get_signature(data)
        return signature

    def unwrap(self, token: bytes) -> tuple[bytes, bool]:
        """What is in a token, and whether it was encrypted."""
        unwrapped = self._context.unwrap(token)
        return unwrapped.message, unwrapped.encrypted


@dataclass(frozen=True)
class Tickets:
    """`acceptor` and `verifier` are the proxy's, `ccache` is alice's."""

    realm: Realm
    acceptor: Acceptor
    verifier: ApReqVerifier
    ccache: Path

    @property
    def service(self) -> str:
        """The principal of the proxy."""
        return f"{SERVICE}@{self.realm.name}"

    def at_choice(
        self, offer: LayerOffer, flags: int = LAYERED, *, lenient: bool = True
    ) -> tuple[GssapiExchange, Initiator, GssContext, bytes]:
        """An exchange that waits for the choice of a layer, both ends, and the message that offers layers."""
        exchange = GssapiExchange(offer, lenient=lenient)
        initiator, context = Initiator(self.ccache, flags), self.acceptor.new_context()
        step = exchange.step(initiator.step())
        while not initiator.complete or isinstance(step, NeedStep):
            if isinstance(step, NeedStep):
                step = exchange.step_done(context, context.step(step.token))
            else:
                assert isinstance(step, Challenge)
                step = exchange.step(initiator.step(step.data) or b"")
        assert isinstance(step, Challenge)
        message, encrypted = initiator.unwrap(step.data)
        assert not encrypted
        return exchange, initiator, context, message


@contextlib.contextmanager
def tickets() -> Iterator[Tickets]:
    """A realm for the length of a with statement; the process lives in it meanwhile."""
    with realm() as it, pytest.MonkeyPatch.context() as patch:
        for name, value in it.environment.items():
            patch.setenv(name, value)
        it.user("alice")
        it.service(SERVICE)
        keytab = it.keytab(SERVICE)
        rcache = it.directory / "rcache"
        rcache.mkdir(mode=0o700)
        executor = BoundedExecutor("tickets", 1, 10, 10.0)
        principals = [f"{SERVICE}@{it.name}"]
        yield Tickets(
            it,
            Acceptor(keytab, principals, rcache_dir=rcache, executor=executor),
            ApReqVerifier(keytab, principals, rcache_dir=rcache, executor=executor),
            it.kinit("alice"),
        )
        executor.close()
