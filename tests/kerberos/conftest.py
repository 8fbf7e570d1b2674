"""A real MIT realm for the whole run. Every test here but those of the mapping is marked `real`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.kerberos.acceptor import Acceptor
from popproxy.kerberos.apreq import ApReqVerifier
from popproxy.state.executors import BoundedExecutor
from tests.peers.kdc import REALM, Realm, realm

POP = f"pop/localhost@{REALM}"
ALICE = f"alice@{REALM}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the realm needs `make setup`."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "kdc" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def session_kdc() -> Iterator[Realm]:
    """The realm, with alice, bob and three services."""
    with realm() as it:
        it.user("alice")
        it.user("bob")
        it.service("pop/localhost", "ftp/localhost", "pop/elsewhere.test")
        yield it


@pytest.fixture
def kdc(session_kdc: Realm, monkeypatch: pytest.MonkeyPatch) -> Realm:
    """The realm, which this process lives in for the length of the test."""
    for name, value in session_kdc.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", "FILE:/nonexistent/ccache")
    monkeypatch.setenv("KRB5_KTNAME", "FILE:/nonexistent/keytab")
    return session_kdc


@pytest.fixture(scope="session")
def session_tickets(session_kdc: Realm) -> Path:
    """Alice's credential cache with tickets for every service."""
    ccache = session_kdc.kinit("alice")
    session_kdc.kvno(ccache, "pop/localhost", "ftp/localhost", "pop/elsewhere.test")
    return ccache


@pytest.fixture
def tickets(kdc: Realm, session_tickets: Path) -> Path:
    """Alice's credential cache with tickets for every service."""
    return session_tickets


@pytest.fixture
def keytab(kdc: Realm) -> Path:
    """The keys of all three services."""
    return kdc.keytab("ftp/localhost", "pop/elsewhere.test", "pop/localhost")


@pytest.fixture
def rcache_dir(tmp_path: Path) -> Path:
    """A directory for a replay cache."""
    directory = tmp_path / "rcache"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def pool() -> Iterator[BoundedExecutor]:
    """Threads that have never met another realm."""
    executor = BoundedExecutor("kerberos", threads=2, queue_limit=10, deadline=20)
    yield executor
    executor.close()


@pytest.fixture
def acceptor(keytab: Path, rcache_dir: Path, pool: BoundedExecutor) -> Acceptor:
    """Takes tickets for pop/localhost only."""
    return Acceptor(keytab, [POP], rcache_dir=rcache_dir, executor=pool)


@pytest.fixture
def verifier(keytab: Path, rcache_dir: Path, pool: BoundedExecutor) -> ApReqVerifier:
    """Takes tickets for pop/localhost only."""
    return ApReqVerifier(keytab, [POP], rcache_dir=rcache_dir, executor=pool)
