"""Tickets for backends, straight from the package: renewal, many threads, what is kept, and both makes of KDC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import gssapi
import pytest

from popproxy.errors import BackendError, LocalProtocolError
from popproxy.kerberos.acceptor import Acceptor, GssContext
from popproxy.kerberos.apreq import ApReqVerifier
from popproxy.kerberos.delegation import Delegation, Source
from popproxy.kerberos.delegation_failure import DelegationFailed, Obstacle
from popproxy.kerberos.evidence import Evidence, gss_framed
from popproxy.kerberos.initiator import Initiator
from popproxy.kerberos.own import OwnCredentials
from popproxy.kerberos.refusal import KerberosRefused, Refusal
from popproxy.state.executors import BoundedExecutor
from tests.peers.heimdal import HeimdalRealm, heimdal_realm
from tests.peers.kdc_ldap import DirectoryRealm, directory_realm
from tests.peers.krb5_client import ApReqClient, initiator

pytestmark = pytest.mark.real
FRONT, BACK = "pop/localhost@POPPROXY.TEST", "pop/backend.test@POPPROXY.TEST"
ALICE = "alice@POPPROXY.TEST"


@pytest.fixture(scope="module")
def module_realm() -> Iterator[DirectoryRealm]:
    with directory_realm() as it:
        it.user("alice")
        it.user("bob", "-allow_forwardable")
        it.service("pop/localhost", "pop/backend.test", "pop/forbidden.test")
        it.allow_delegation("pop/localhost", "pop/backend.test")
        it.allow_transition("pop/localhost")
        yield it


@pytest.fixture
def realm(module_realm: DirectoryRealm, monkeypatch: pytest.MonkeyPatch) -> DirectoryRealm:
    for name, value in module_realm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", "FILE:/nonexistent/ccache")
    monkeypatch.setenv("KRB5_KTNAME", "FILE:/nonexistent/keytab")
    return module_realm


@pytest.fixture
def front(realm: DirectoryRealm) -> Path:
    return realm.keytab("pop/localhost")


@pytest.fixture
def delegation(front: Path, pool: BoundedExecutor) -> Delegation:
    return Delegation(front, FRONT, executor=pool)


@pytest.fixture
def backend(realm: DirectoryRealm, rcache_dir: Path, pool: BoundedExecutor) -> Acceptor:
    keytab = realm.keytab("pop/backend.test", "pop/forbidden.test")
    return Acceptor(keytab, [BACK], rcache_dir=rcache_dir, executor=pool)


async def introduce(source: Source, backend: Acceptor, binding: bytes | None = None) -> tuple[Initiator, GssContext]:
    """Both ends of a context for which `source` has the ticket."""
    ours, theirs = source.context("pop/backend.test", binding), backend.new_context(binding)
    token = await ours.advance(None)
    assert token is not None
    answer = await theirs.advance(token)
    assert answer is not None
    assert await ours.advance(answer) is None
    assert ours.complete
    return ours, theirs


def asked(realm: DirectoryRealm) -> int:
    """Requests to the KDC so far."""
    return (realm.directory / "kdc.log").read_text().count("_REQ ")


# ---- who comes to the backend ----


async def test_by_the_ticket_that_gssapi_or_kpop_has_brought(
    realm: DirectoryRealm,
    front: Path,
    rcache_dir: Path,
    pool: BoundedExecutor,
    delegation: Delegation,
    backend: Acceptor,
) -> None:
    ccache = realm.kinit("alice")
    realm.kvno(ccache, FRONT)
    acceptor = Acceptor(front, [FRONT], rcache_dir=rcache_dir, executor=pool, delegation=True)
    context = acceptor.new_context()
    await context.advance(initiator(ccache).step() or b"")
    assert context.evidence is not None
    assert context.delegated is None
    ours, theirs = await introduce(delegation.delegated(ALICE, context.evidence, None), backend)
    assert (theirs.initiator, theirs.target) == (ALICE, BACK)
    assert (ours.mutual, ours.integrity, ours.confidentiality) == (True, True, True)
    context.forget()
    assert [context.evidence, context.delegated] == [None, None]

    ap_req = ApReqClient(ccache, FRONT).ap_req
    verifier = ApReqVerifier(front, [FRONT], rcache_dir=rcache_dir, executor=pool)
    accepted = await verifier.check(ap_req)
    other = Delegation(front, FRONT, executor=pool)
    source = other.delegated(ALICE, Evidence(gss_framed(ap_req), accepted.server), None)
    _, theirs = await introduce(source, backend)
    assert theirs.initiator == ALICE


async def test_nothing_is_kept_of_a_client_where_no_pool_wants_it(
    realm: DirectoryRealm, front: Path, rcache_dir: Path, pool: BoundedExecutor
) -> None:
    ccache = realm.kinit("alice")
    context = Acceptor(front, [FRONT], rcache_dir=rcache_dir, executor=pool).new_context()
    await context.advance(initiator(ccache, delegate=True).step() or b"")
    assert context.evidence is None
    assert context.delegated is None


async def test_what_was_forwarded_is_used_only_by_that_name(
    realm: DirectoryRealm,
    front: Path,
    rcache_dir: Path,
    pool: BoundedExecutor,
    delegation: Delegation,
    backend: Acceptor,
) -> None:
    ccache = realm.kinit("alice")
    context = Acceptor(front, [FRONT], rcache_dir=rcache_dir, executor=pool, delegation=True).new_context()
    await context.advance(initiator(ccache, delegate=True).step() or b"")
    assert context.delegated is not None
    assert context.evidence is not None
    forwarded = delegation.forwarded(ALICE, context.delegated)
    ours, theirs = await introduce(forwarded, backend)
    assert theirs.initiator == ALICE
    assert len(delegation._kept) == 0, "it is gone with its login"
    assert ours._source is None, "also if the session goes on in a layer"
    assert await forwarded.context("pop/forbidden.test", None).advance(None)
    constrained = delegation.delegated(ALICE, context.evidence, context.delegated)
    _, theirs = await introduce(constrained, backend)
    assert theirs.initiator == ALICE
    assert len(delegation._kept) == 1
    with pytest.raises(DelegationFailed) as caught:
        await constrained.context("pop/forbidden.test", None).advance(None)
    assert caught.value.obstacle is Obstacle.NOT_ALLOWED


@pytest.mark.parametrize(
    ("user", "obstacle"),
    [
        ("bob", Obstacle.NOT_DELEGATABLE),
        ("nobody-here", Obstacle.NOT_DELEGATABLE),
        ("alice@ELSEWHERE.TEST", Obstacle.KDC),
        ("", Obstacle.NOT_DELEGATABLE),
    ],
)
async def test_users_in_whose_name_there_is_no_ticket(
    realm: DirectoryRealm, delegation: Delegation, user: str, obstacle: Obstacle
) -> None:
    name = user if "@" in user else f"{user}@{realm.name}"
    with pytest.raises(DelegationFailed) as caught:
        await delegation.transition(name).context(BACK, None).advance(None)
    assert caught.value.obstacle is obstacle, caught.value


async def test_own_ticket(delegation: Delegation, backend: Acceptor) -> None:
    _, theirs = await introduce(delegation.service(), backend)
    assert theirs.initiator == FRONT


async def test_evidence_that_is_gone_or_garbage(delegation: Delegation) -> None:
    evidence = Evidence(b"\x60\x03abc", FRONT)
    with pytest.raises(DelegationFailed) as caught:
        await delegation.delegated(ALICE, evidence, None).context(BACK, None).advance(None)
    assert not caught.value.temporary or caught.value.obstacle is Obstacle.KDC
    evidence.clear()
    with pytest.raises(DelegationFailed) as caught:
        await delegation.delegated(ALICE, evidence, None).context(BACK, None).advance(None)
    assert caught.value.obstacle is Obstacle.NOT_DELEGATABLE


# ---- the context ----


@pytest.mark.parametrize("binding", [None, b"tls-server-end-point:" + bytes(32)])
async def test_messages_both_ways(delegation: Delegation, backend: Acceptor, binding: bytes | None) -> None:
    ours, theirs = await introduce(delegation.service(), backend, binding)
    assert theirs.channel_bound == (binding is not None)
    for confidential in (False, True):
        there = ours.wrap(b"RETR 1", confidential=confidential)
        assert (b"RETR 1" in there) == (not confidential)
        assert theirs.unwrap(there) == (b"RETR 1", confidential)
        back = theirs.wrap(b"+OK", confidential=confidential)
        again = bytes(bytearray(back))  # the library changes a token in its place
        assert ours.unwrap(back) == (b"+OK", confidential)
        with pytest.raises(KerberosRefused) as caught:
            ours.unwrap(again)
        assert caught.value.reason is Refusal.REPLAY
    assert 0 < ours.wrap_size_limit(1024, confidential=True) < 1024
    with pytest.raises(KerberosRefused):
        ours.unwrap(b"garbage")


@pytest.mark.parametrize("bend", [lambda token: token[:-1] + bytes([token[-1] ^ 1]), lambda _: b"garbage"])
async def test_server_that_cannot_prove_itself(delegation: Delegation, backend: Acceptor, bend: object) -> None:
    assert callable(bend)
    ours, theirs = delegation.service().context(BACK, None), backend.new_context()
    answer = await theirs.advance(await ours.advance(None) or b"")
    with pytest.raises(BackendError, match="cannot prove"):
        await ours.advance(bend(answer))
    assert not ours.complete
    for call in (lambda: ours.wrap(b"", confidential=False), lambda: ours.unwrap(b""), lambda: ours.step(answer)):
        with pytest.raises(LocalProtocolError):
            call()


async def test_another_server_with_the_same_name_is_refused(
    delegation: Delegation, backend: Acceptor, realm: DirectoryRealm, rcache_dir: Path, pool: BoundedExecutor
) -> None:
    """Who has no key of the backend's cannot make sense of the ticket, and what it answers is taken for nothing."""
    ours = delegation.service().context("pop/forbidden.test", None)
    token = await ours.advance(None)
    with pytest.raises(KerberosRefused):
        await backend.new_context().advance(token or b"")


# ---- what is kept ----


async def test_kept_for_a_user_until_the_backend_refuses(
    realm: DirectoryRealm, delegation: Delegation, backend: Acceptor
) -> None:
    await introduce(delegation.transition(ALICE), backend)
    before = asked(realm)
    source = delegation.transition(ALICE)
    await introduce(source, backend)
    assert asked(realm) == before
    source.refused()
    await introduce(delegation.transition(ALICE), backend)
    assert asked(realm) - before == 2, "S4U2Self and S4U2Proxy"
    before = asked(realm)
    service = delegation.service()
    await introduce(service, backend)
    await introduce(delegation.service(), backend)
    assert asked(realm) - before == 1, "the ticket-granting ticket was there"
    service.refused()
    await introduce(delegation.service(), backend)
    assert asked(realm) - before > 1


async def test_many_logins_at_once(delegation: Delegation, backend: Acceptor) -> None:
    sources = [delegation.transition(ALICE), delegation.service()] * 20
    contexts = await asyncio.gather(*(introduce(source, backend) for source in sources[:10]))
    assert {theirs.initiator for _, theirs in contexts} == {ALICE, FRONT}


def test_own_ticket_is_renewed_in_time_and_serves_while_the_kdc_is_down(
    realm: DirectoryRealm, front: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnCredentials(front)
    first = own.get(FRONT, "kerberos-service")
    assert own.get(FRONT, "kerberos-service") is first
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    now[0] = first.renew_at + 1
    realm.stop()
    try:
        assert own.get(FRONT, "kerberos-service") is first
        now[0] += 1
        before = asked(realm)
        assert own.get(FRONT, "kerberos-service") is first
        assert asked(realm) == before, "not asked again at once"
        now[0] = first.ends_at + 1
        with pytest.raises(DelegationFailed) as caught:
            own.get(FRONT, "kerberos-service")
        assert caught.value.obstacle is Obstacle.KDC
    finally:
        realm.start()
    second = own.get(FRONT, "kerberos-service")
    assert second is not first


def test_tickets_of_ours_leave_no_cache_behind(front: Path) -> None:
    own = OwnCredentials(front)
    held = own.get(FRONT, "kerberos-service")
    name = held._cache.decode()
    store: dict[bytes | str, bytes | str] = {"ccache": name}
    assert gssapi.Credentials(usage="initiate", store=store).lifetime > 0
    own.forget(FRONT)
    del held
    with pytest.raises(gssapi.raw.GSSError):
        gssapi.Credentials(usage="initiate", store=store).lifetime  # noqa: B018


@pytest.mark.parametrize("wrong", ["no key", "no principal", "old key", "no file"])
async def test_own_keytab_that_is_of_no_use(
    realm: DirectoryRealm, front: Path, pool: BoundedExecutor, tmp_path: Path, wrong: str
) -> None:
    keytab, principal = front, FRONT
    if wrong == "no key":
        principal = f"pop/elsewhere.test@{realm.name}"
    elif wrong == "no principal":
        realm.service("pop/gone.test")
        keytab, principal = realm.keytab("pop/gone.test"), f"pop/gone.test@{realm.name}"
        realm.kadmin("delprinc", "pop/gone.test")
    elif wrong == "old key":
        realm.service("pop/old.test")
        keytab, principal = realm.keytab("pop/old.test"), f"pop/old.test@{realm.name}"
        realm.rotate("pop/old.test")
        realm.kadmin("delprinc", "pop/old.test")
        realm.service("pop/old.test")
    else:
        keytab = tmp_path / "nothing"
    source = Delegation(keytab, principal, executor=pool).service()
    with pytest.raises(DelegationFailed) as caught:
        await source.context(BACK, None).advance(None)
    assert caught.value.obstacle is Obstacle.OWN_CREDENTIAL, caught.value


# ---- rehearsals ----


def test_rehearsal(realm: DirectoryRealm, delegation: Delegation) -> None:
    for strategy in ("kerberos-delegated", "kerberos-transition", "kerberos-service", "kerberos-forwarded"):
        delegation.rehearse(strategy, "pop/backend.test", FRONT)
        with pytest.raises(DelegationFailed) as caught:
            delegation.rehearse(strategy, "pop/nowhere.test", FRONT)
        assert caught.value.obstacle is Obstacle.NO_TARGET
    for strategy in ("kerberos-delegated", "kerberos-transition"):
        with pytest.raises(DelegationFailed) as caught:
            delegation.rehearse(strategy, "pop/forbidden.test", FRONT)
        assert caught.value.obstacle is Obstacle.NOT_ALLOWED
    realm.allow_transition("pop/localhost", allow=False)
    try:
        with pytest.raises(DelegationFailed) as caught:
            delegation.rehearse("kerberos-transition", "pop/backend.test", FRONT)
        assert caught.value.obstacle is Obstacle.NOT_DELEGATABLE
        delegation.rehearse("kerberos-delegated", "pop/backend.test", FRONT)
    finally:
        realm.allow_transition("pop/localhost")


# ---- Heimdal ----


@pytest.fixture(scope="module")
def module_heimdal() -> Iterator[HeimdalRealm]:
    with heimdal_realm() as it:
        it.user("alice")
        it.service("pop/localhost", "pop/backend.test", "pop/forbidden.test", "pop/untrusted.test")
        it.allow_delegation("pop/localhost", "pop/backend.test")
        it.allow_delegation("pop/untrusted.test", "pop/backend.test", transition=False)
        yield it


async def test_heimdal(
    module_heimdal: HeimdalRealm, monkeypatch: pytest.MonkeyPatch, rcache_dir: Path, pool: BoundedExecutor
) -> None:
    realm = module_heimdal
    for name, value in realm.environment.items():
        monkeypatch.setenv(name, value)
    alice, target = f"alice@{realm.name}", f"pop/backend.test@{realm.name}"
    own = f"pop/localhost@{realm.name}"
    backend = Acceptor(realm.keytab("pop/backend.test"), [target], rcache_dir=rcache_dir, executor=pool)
    delegation = Delegation(realm.keytab("pop/localhost"), own, executor=pool)
    for source, who in ((delegation.transition(alice), alice), (delegation.service(), own)):
        _, theirs = await introduce(source, backend)
        assert theirs.initiator == who
    delegation.rehearse("kerberos-transition", target, own)
    with pytest.raises(DelegationFailed) as caught:
        await delegation.transition(alice).context("pop/forbidden.test", None).advance(None)
    assert caught.value.obstacle is Obstacle.NOT_ALLOWED
    untrusted = Delegation(realm.keytab("pop/untrusted.test"), f"pop/untrusted.test@{realm.name}", executor=pool)
    with pytest.raises(DelegationFailed) as caught:
        await untrusted.transition(alice).context("pop/backend.test", None).advance(None)
    assert caught.value.obstacle is Obstacle.NOT_DELEGATABLE
