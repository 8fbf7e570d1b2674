"""Dovecot, popa3d, and a popproxy in front of each, for the whole run; every test here is marked `real`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.popa3d import Popa3d, popa3d
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, StartProxy, proxies, settings
from tests.real.delegation_rig import Grounds, grounds
from tests.real.kerberos_rig import MESSAGE, Site, site

pytest.register_assert_rewrite("tests.real.kerberos_clients")

Backend: TypeAlias = Dovecot | Popa3d


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands in this directory needs `make setup`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def dovecot_server(server_certificate: CertificateFiles) -> Iterator[Dovecot]:
    """Users alice and bob; everything that Dovecot can do."""
    with dovecot(server_certificate, mechanisms="plain login apop") as server:
        yield server


@pytest.fixture(scope="session")
def popa3d_server() -> Iterator[Popa3d]:
    """Users alice and bob; USER and PASS only."""
    with popa3d() as server:
        yield server


def in_front_of(server: Backend, certificate: CertificateFiles, fallback: str) -> Iterator[Proxy]:
    """A proxy with listeners pop3, pop3s, apop and apops.

    Passwords are passed through. Who comes by APOP is known from the vault, and `fallback` is how the backend is then
    logged in to.
    """
    configuration = settings(f"127.0.0.1:{server.port}", certificate, pool={"login": ["forward", fallback]})
    for listener in tuple(configuration["listeners"]):
        name = listener["name"].replace("pop3", "apop")
        configuration["listeners"].append({**listener, "name": name, "listen": ["127.0.0.1:0"], "apop": True})
    with proxies() as start:
        yield start(configuration, vault=server.users)


@pytest.fixture(scope="session")
def dovecot_proxy(dovecot_server: Dovecot, server_certificate: CertificateFiles) -> Iterator[Proxy]:
    """APOP clients are logged in by APOP."""
    yield from in_front_of(dovecot_server, server_certificate, "apop")


@pytest.fixture(scope="session")
def popa3d_proxy(popa3d_server: Popa3d, server_certificate: CertificateFiles) -> Iterator[Proxy]:
    """APOP clients are logged in with the password from the vault."""
    yield from in_front_of(popa3d_server, server_certificate, "stored")


@pytest.fixture(scope="module")
def kerberos(server_certificate: CertificateFiles) -> Iterator[Site]:
    """A realm, which this process lives in, and a proxy that takes its tickets, with a Dovecot that knows passwords."""
    with site(server_certificate) as it, pytest.MonkeyPatch.context() as patch:
        for name, value in it.realm.environment.items():
            patch.setenv(name, value)
        yield it


@pytest.fixture
def maildrop(kerberos: Site) -> Site:
    """Alice has one message, bob none."""
    kerberos.backend.deliver("alice", [MESSAGE])
    kerberos.backend.deliver("bob", [])
    return kerberos


@pytest.fixture(scope="session")
def session_ground(server_certificate: CertificateFiles) -> Iterator[Callable[[StartProxy], Grounds]]:
    """A realm that allows delegation, and a Dovecot that takes nothing but tickets."""
    with grounds(server_certificate) as it:
        yield it


@pytest.fixture
def ground(session_ground: Callable[[StartProxy], Grounds]) -> Iterator[Grounds]:
    """Alice and bob have one message each."""
    with proxies() as start:
        it = session_ground(start)
        for user in ("alice", "bob"):
            it.backend.deliver(user, [MESSAGE])
        yield it


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory for a mail client."""
    with public_directory("client") as directory:
        yield directory
