"""Tickets of another make of KDC, and what a service may do with them there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gssapi
import pytest
from gssapi import raw

from popproxy.kerberos.acceptor import Acceptor
from popproxy.kerberos.apreq import ApReqVerifier
from popproxy.kerberos.password import KdcPassword
from popproxy.state.executors import BoundedExecutor
from popproxy.types import Secret
from tests.peers.heimdal import HeimdalRealm, heimdal_realm
from tests.peers.krb5_client import ApReqClient, initiator

pytestmark = pytest.mark.real
FRONT = "pop/localhost@HEIMDAL.TEST"
ALICE = "alice@HEIMDAL.TEST"


@pytest.fixture(scope="module")
def module_heimdal() -> Iterator[HeimdalRealm]:
    with heimdal_realm() as it:
        it.user("alice")
        it.service("pop/localhost", "pop/backend.test", "pop/forbidden.test")
        it.allow_delegation("pop/localhost", "pop/backend.test")
        yield it


@pytest.fixture
def heimdal(module_heimdal: HeimdalRealm, monkeypatch: pytest.MonkeyPatch) -> HeimdalRealm:
    for name, value in module_heimdal.environment.items():
        monkeypatch.setenv(name, value)
    return module_heimdal


def token(credentials: gssapi.Credentials, service: str) -> bytes | None:
    name = gssapi.Name(f"{service}@HEIMDAL.TEST", gssapi.NameType.kerberos_principal)
    first: bytes | None = gssapi.SecurityContext(name=name, creds=credentials, usage="initiate").step()
    return first


async def test_tickets_and_passwords_of_heimdal(heimdal: HeimdalRealm, rcache_dir: Path, pool: BoundedExecutor) -> None:
    keytab = heimdal.keytab("pop/localhost")
    ccache = heimdal.kinit("alice")
    heimdal.kvno(ccache, FRONT)
    verifier = ApReqVerifier(keytab, [FRONT], rcache_dir=rcache_dir, executor=pool)
    assert (await verifier.check(ApReqClient(ccache, FRONT).ap_req)).client == ALICE
    context = Acceptor(keytab, [FRONT], rcache_dir=rcache_dir, executor=pool).new_context()
    token = initiator(ccache).step()
    assert token is not None
    await context.advance(token)
    assert context.initiator == ALICE
    passwords = KdcPassword(keytab, FRONT, ["HEIMDAL.TEST"], executor=pool)
    assert await passwords.check("alice", Secret(heimdal.passwords["alice"])) == ALICE


def test_delegation_reaches_the_service_that_is_listed_and_no_other(heimdal: HeimdalRealm) -> None:
    """S4U2Self and S4U2Proxy: shows that the rig can prove what the proxy is to do later."""
    keytab = heimdal.keytab("pop/localhost")
    own = gssapi.Credentials(
        usage="both",
        name=gssapi.Name(FRONT, gssapi.NameType.kerberos_principal),
        store={"keytab": f"FILE:{keytab}", "client_keytab": f"FILE:{keytab}", "ccache": "MEMORY:heimdal-test"},
    )
    for_alice = own.impersonate(gssapi.Name(ALICE, gssapi.NameType.kerberos_principal))

    assert token(for_alice, "pop/backend.test")
    with pytest.raises(raw.GSSError):
        token(for_alice, "pop/forbidden.test")
