"""A login by ticket under way: the KDC's failures are not the server's, and nothing is tried that was not asked for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest

from popproxy.app.names import lookup
from popproxy.backend.dial import Dialer
from popproxy.backend.kerberos_logins import KerberosLogins
from popproxy.backend.link import NotOpened, Opened
from popproxy.backend.pool import Pool
from popproxy.backend.strategies import logins_for
from popproxy.config.model import Timeouts
from popproxy.config.model_pools import Pool as PoolConfig
from popproxy.errors import BackendError, Unavailable
from popproxy.kerberos.delegation_failure import DelegationFailed, Obstacle
from popproxy.net.deadlines import Deadlines
from popproxy.net.names import Resolver
from popproxy.net.reactor import Reactor
from popproxy.observe.metrics import Metrics
from popproxy.pop3.logins import Gssapi, UserPass
from popproxy.sasl.credentials import ApopCredential, GssapiCredential, KpopCredential, Layer, PasswordCredential
from popproxy.types import Identity, Mechanism, Secret
from tests.peers.gss_double import TransparentContext
from tests.session.rig import Backend, Peer, answer_login

PASS = UserPass("alice", Secret("canary-pw"), strategy="stored")


class Context(TransparentContext):
    """As the initiator's, but for the thread."""

    def __init__(self, source: Source) -> None:
        super().__init__([b"AP-REQ", None])
        self._source = source

    async def advance(self, token: bytes | None) -> bytes | None:
        await self._source.gate.wait()
        if self._source.failure is not None:
            raise self._source.failure
        return self.step(token or b"")


class Source:
    """Gives tickets for everything, unless there is a `failure`. `asked` is for which targets."""

    strategy = "kerberos-delegated"

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[str, bytes | None]] = []
        self.refusals = 0

    def context(self, target: str, binding: bytes | None) -> Context:
        self.asked.append((target, binding))
        return Context(self)

    def refused(self) -> None:
        self.refusals += 1


class Site:
    """A pool of two servers that the test answers by hand."""

    def __init__(self) -> None:
        self.servers = [Backend(), Backend()]
        config = {
            "servers": [server.address for server in self.servers],
            "kerberos": {"principal": "pop/mail.test"},
            "shared": True,
            "tls": "none",
            "login": ["kerberos-delegated"],
        }
        self.pool = Pool("main", PoolConfig.model_validate(config))
        loop = asyncio.get_running_loop()
        self.reactor = Reactor(loop)
        self.metrics = Metrics(["pop3"], [backend.label for backend in self.pool.backends])
        self.deadlines = Deadlines(loop, lambda _: None)
        self.dialer = Dialer(self.reactor, self.deadlines, Resolver(loop, lookup(None)), Timeouts(), self.metrics)

    def open(self, *logins: Gssapi | UserPass) -> asyncio.Task[Opened | NotOpened]:
        return asyncio.create_task(self.dialer.open_maildrop(self.pool, logins, "alice"))

    async def asked_for_capa(self, number: int = 0) -> Peer:
        peer = await self.servers[number].greeted()
        await peer.expect("CAPA")
        return peer

    def counted(self, outcome: str) -> float:
        return self.metrics.backend_tickets[("kerberos-delegated", outcome)]

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.deadlines.close()
        self.reactor.close()


@pytest.fixture
async def it() -> AsyncIterator[Site]:
    site = Site()
    yield site
    site.close()


def ticket(source: Source, *layers: Layer) -> Gssapi:
    return Gssapi("alice", source, layers or (Layer.NONE,), source.strategy)


async def exchange(peer: Peer, mask: int = 1, size: int = 0, verdict: str = "+OK") -> TransparentContext:
    """The server's side, from CAPA to its verdict."""
    server = TransparentContext()
    await peer.send("-ERR no CAPA here\r\n")
    await peer.expect("AUTH GSSAPI " + base64.b64encode(b"AP-REQ").decode())
    await peer.send(b"+ " + base64.b64encode(b"AP-REP") + b"\r\n")
    await peer.expect("")
    offer = server.wrap(bytes([mask]) + size.to_bytes(3, "big"), confidential=False)
    await peer.send(b"+ " + base64.b64encode(offer) + b"\r\n")
    choice, _ = server.unwrap(base64.b64decode(await peer.line()))
    assert choice[4:] == b"alice"
    await peer.send(f"{verdict}\r\n")
    return server


async def test_in(it: Site) -> None:
    source = Source()
    task = it.open(ticket(source))
    await exchange(await it.asked_for_capa())
    opened = await task
    assert isinstance(opened, Opened)
    assert opened.login.strategy == "kerberos-delegated"
    assert source.asked == [("pop/mail.test", None)]
    assert source.refusals == 0
    assert it.counted("ok") == 1
    opened.channel.abort()


@pytest.mark.parametrize("confidential", [False, True])
async def test_everything_behind_ok_is_in_the_layer(it: Site, confidential: bool) -> None:
    layer = Layer.CONFIDENTIALITY if confidential else Layer.INTEGRITY
    task = it.open(ticket(Source(), layer))
    peer = await it.asked_for_capa()
    server = await exchange(peer, int(layer), 65536)
    opened = await task
    assert isinstance(opened, Opened)
    assert opened.channel.encrypted == confidential
    opened.channel.write(b"STAT\r\n")
    length = int.from_bytes(await peer.take(4), "big")
    assert server.unwrap(await peer.take(length)) == (b"STAT\r\n", confidential)
    opened.channel.abort()


async def test_refused_ticket_is_not_used_again(it: Site) -> None:
    source = Source()
    task = it.open(ticket(source), PASS)
    await exchange(await it.asked_for_capa(), verdict="-ERR [AUTH] no")
    refused = await task
    assert isinstance(refused, NotOpened)
    assert refused.code == "AUTH"
    assert source.refusals == 1


@pytest.mark.parametrize("obstacle", [one for one in Obstacle if one is not Obstacle.UNAVAILABLE])
async def test_what_the_kdc_says_is_not_the_servers_fault(it: Site, obstacle: Obstacle) -> None:
    """No other server is tried: it is the same KDC."""
    task = it.open(ticket(Source(DelegationFailed(obstacle, "kerberos-delegated", "no"))))
    peer = await it.asked_for_capa()
    await peer.send("-ERR\r\n")
    with pytest.raises(DelegationFailed) as caught:
        await task
    assert caught.value.obstacle is obstacle
    assert await peer.rest() == b"", "not a word of a login"
    with pytest.raises(TimeoutError):
        await it.servers[1].accept(0.05)
    assert it.counted(obstacle) == 1
    assert not any(it.metrics.backend_errors.values())


async def test_no_thread_is_unavailable(it: Site) -> None:
    task = it.open(ticket(Source(Unavailable("the delegation pool has 200 calls waiting", "queue_full"))))
    peer = await it.asked_for_capa()
    await peer.send("-ERR\r\n")
    with pytest.raises(DelegationFailed) as caught:
        await task
    assert caught.value.temporary
    assert it.counted("unavailable") == 1


@pytest.mark.parametrize("obstacle", list(Obstacle))
async def test_next_way_only_for_users_that_cannot_be_delegated(it: Site, obstacle: Obstacle) -> None:
    """Otherwise a wrong set-up would go unnoticed, and a KDC that is down would change how everybody logs in."""
    task = it.open(ticket(Source(DelegationFailed(obstacle, "kerberos-delegated", "no"))), PASS)
    peer = await it.servers[0].greeted()
    if obstacle is Obstacle.NOT_DELEGATABLE:
        await answer_login(peer)
        opened = await task
        assert isinstance(opened, Opened)
        assert opened.login is PASS
        opened.channel.abort()
        return
    await peer.expect("CAPA")
    await peer.send("-ERR\r\n")
    with pytest.raises(DelegationFailed):
        await task
    assert await peer.rest() == b""


@pytest.mark.parametrize("end", ["speaks", "closes", "resets"])
async def test_server_that_does_not_wait_for_the_ticket(it: Site, end: str) -> None:
    """Nothing has been sent to it, so the next one is tried."""
    source = Source()
    source.gate.clear()
    task = it.open(ticket(source))
    peer = await it.asked_for_capa()
    await peer.send("-ERR\r\n")
    while not source.asked:
        await asyncio.sleep(0)
    if end == "speaks":
        await peer.send("+OK welcome\r\n")
        await peer.rest()
    elif end == "closes":
        peer.half_close()
        await peer.rest()
    else:
        peer.reset()
        await asyncio.sleep(0.05)
    source.gate.set()
    await exchange(await it.asked_for_capa(1))
    opened = await task
    assert isinstance(opened, Opened)
    assert opened.backend is it.pool.backends[1]
    opened.channel.abort()


async def test_server_that_cannot_prove_itself(it: Site) -> None:
    """It has had a ticket: no other server gets one for this login."""
    source = Source()
    task = it.open(ticket(source))
    peer = await it.asked_for_capa()
    await peer.send("-ERR\r\n")
    await peer.line()
    source.failure = BackendError("the server cannot prove that it is the one we want", "login", "protocol")
    await peer.send(b"+ " + base64.b64encode(b"AP-REP") + b"\r\n")
    with pytest.raises(BackendError, match="cannot prove"):
        await task
    with pytest.raises(TimeoutError):
        await it.servers[1].accept(0.05)


# ---- what there is to begin with ----


class Delegation:
    """Says which source it was asked for."""

    def forwarded(self, user: str, delegated: object) -> tuple[object, ...]:
        return ("forwarded", user, delegated)

    def delegated(self, user: str, evidence: object, forwarded: object) -> tuple[object, ...]:
        return ("delegated", user, evidence, forwarded)

    def transition(self, user: str) -> tuple[object, ...]:
        return ("transition", user)

    def service(self) -> tuple[object, ...]:
        return ("service",)


class Shown:
    """A GSS context of a client."""

    def __init__(self, delegated: object = None) -> None:
        self.delegated = delegated
        self.evidence = "evidence"


ALICE = Identity("alice", "alice@A", Mechanism.GSSAPI, principal="alice@A")
PASSWORD = PasswordCredential(Mechanism.USER, "alice", Secret("canary-pw"))
APOP = ApopCredential("alice", b"<1@a>", Secret("0" * 32))
ALL = ["kerberos-forwarded", "kerberos-delegated", "kerberos-transition", "kerberos-service"]


def logins(identity: Identity, credential: object, login: list[str] = ALL) -> list[object]:
    config = {"servers": ["a.test"], "login": login}
    kerberos = KerberosLogins(Delegation(), {"alice": "alice@A"}.get)
    found = logins_for(
        Pool("main", PoolConfig.model_validate(config)),
        "al",
        identity,
        credential,  # type: ignore[arg-type]
        lambda: None,
        kerberos,
    )
    for one in found:
        if isinstance(one, Gssapi):
            assert one.authzid == "al", "the name at the server is always sent"
    return [one.source if isinstance(one, Gssapi) else one for one in found]


def test_every_way_whose_beginning_is_there() -> None:
    gssapi = GssapiCredential("alice@A", "pop/x@A", context=Shown())
    forwarding = GssapiCredential("alice@A", "pop/x@A", context=Shown("tgt"))
    kpop = KpopCredential("alice@A", "pop/x@A", evidence="ap-req")
    rest = [("transition", "alice@A"), ("service",)]
    assert logins(ALICE, gssapi) == [("delegated", "alice@A", "evidence", None), *rest]
    assert logins(ALICE, forwarding) == [
        ("forwarded", "alice@A", "tgt"),
        ("delegated", "alice@A", "evidence", "tgt"),
        *rest,
    ]
    assert logins(ALICE, kpop) == [("delegated", "alice@A", "ap-req", None), *rest]
    for credential in (PASSWORD, APOP):
        assert logins(Identity("alice", "alice", Mechanism.USER), credential) == rest
        assert logins(Identity("carol", "carol", Mechanism.USER), credential) == [("service",)]


def test_nothing_for_somebody_whom_only_the_backend_could_judge() -> None:
    unproven = Identity("alice", "alice", Mechanism.USER, proven=False)
    assert logins(unproven, PASSWORD) == []
    assert logins(unproven, PASSWORD, ["kerberos-transition", "forward"]) == [
        UserPass("al", PASSWORD.password, users_own=True)
    ]


@pytest.mark.parametrize(
    ("tls", "layers"),
    [("none", (Layer.CONFIDENTIALITY, Layer.NONE)), ("stls", (Layer.NONE,)), ("implicit", (Layer.NONE,))],
)
def test_layers_only_where_there_is_no_tls(tls: str, layers: tuple[Layer, ...]) -> None:
    config = {
        "servers": ["a.test"],
        "tls": tls,
        "login": ["kerberos-service"],
        "kerberos": {"layers": ["confidentiality", "none"]},
    }
    kerberos = KerberosLogins(Delegation(), lambda _: None)
    pool = Pool("main", PoolConfig.model_validate(config))
    (login,) = logins_for(pool, "al", ALICE, PASSWORD, lambda: None, kerberos)
    assert isinstance(login, Gssapi)
    assert login.layers == layers


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        ("pop/{host}", "pop/mail.a.test"),
        ("pop/all@B", "pop/all@B"),
        ("POP/{host}@B", "POP/mail.a.test@B"),
    ],
)
def test_name_of_a_server_is_the_one_that_is_configured(principal: str, expected: str) -> None:
    config = {"servers": ["Mail.A.test:1110"], "kerberos": {"principal": principal}}
    assert Pool("main", PoolConfig.model_validate(config)).backends[0].principal == expected
