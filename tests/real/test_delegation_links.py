"""Logging in at servers by ticket over every kind of link; master users by PLAIN; what `popproxy check` finds out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import public_directory
from tests.peers.tap import tap
from tests.real.delegation_rig import (
    BACKEND,
    FORBIDDEN,
    Grounds,
    curl,
    failure,
    gssapi_dovecot,
    login_record,
    refusal,
)
from tests.real.kerberos_rig import MASTER, MESSAGE, give_to_service, master_dovecot


@pytest.mark.parametrize("tls", ["stls", "implicit"])
def test_under_tls(
    ground: Grounds, home: Path, authority: Authority, server_certificate: CertificateFiles, tls: str
) -> None:
    with gssapi_dovecot(ground.realm, BACKEND, certificate=server_certificate) as backend:
        backend.deliver("alice", [MESSAGE])
        port = backend.tls_port if tls == "implicit" else backend.port
        it = ground.site(
            ["kerberos-delegated"],
            pool={
                "servers": [f"localhost:{port}"],
                "tls": tls,
                "ca": str(authority.ca),
                "kerberos": {"principal": BACKEND},
            },
        )
        status, output = curl(it, home)
        assert status == 0, output + it.proxy.log()


def test_link_without_tls_to_a_server_without_layers(ground: Grounds, home: Path) -> None:
    """Dovecot has none: nothing would protect the session, and nobody has said that it may go in clear."""
    it = ground.site(["kerberos-delegated"], pool={"kerberos": {"principal": BACKEND}})
    assert refusal(it, home).startswith("-ERR [SYS/PERM]")
    assert failure(it)["event.reason"] == "layer"
    assert "offers the security layers none, and none of them will do" in it.proxy.log()


@pytest.mark.parametrize("layer", ["integrity", "confidentiality"])
def test_layers_protect_a_link_without_tls(ground: Grounds, home: Path, layer: str) -> None:
    """To a server that has them: another popproxy."""
    realm = ground.realm
    big = b"Subject: big\n\n" + b"".join(b"%09d %s\n" % (n, b"0123456789" * 6) for n in range(50_000))
    ground.backend.deliver("alice", [MESSAGE, big])
    inner_principal = f"pop/{layer}.test"
    realm.service(inner_principal)
    realm.allow_delegation("pop/localhost", inner_principal)
    keytab = realm.keytab(inner_principal, "pop/localhost")
    give_to_service(keytab)
    inner = ground.site(
        ["kerberos-service"],
        kerberos={
            "principals": [f"{inner_principal}@{realm.name}"], "client_principal": f"pop/localhost@{realm.name}",
            "layers": [layer],
        },
        keytab=keytab,
    )  # fmt: skip
    with tap(inner.proxy.port()) as wire_between:
        link = {
            "servers": [f"127.0.0.1:{wire_between.port}"],
            "kerberos": {"principal": inner_principal, "layers": ["confidentiality", "integrity"]},
        }
        it = ground.site(["kerberos-delegated"], pool=link)
        status, output = curl(it, home, path="/2")
        assert status == 0, output + it.proxy.log()
        assert output.replace("\r\n", "\n").encode() == big
        it.proxy.settled()
    assert (b"Subject: big" in wire_between.seen) == (layer == "integrity")
    assert b"RETR 2\r\n" in wire_between.seen if layer == "integrity" else b"RETR" not in wire_between.seen
    assert b"QUIT\r\n" not in wire_between.seen.replace(b"QUIT\r\n", b"", 1)


def test_a_server_whose_tls_is_another_is_refused_by_channel_binding(
    ground: Grounds, home: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    """Between two popproxies: the inner one requires the binding, so that the outer one must send the right one."""
    realm = ground.realm
    realm.service("pop/bound.test")
    realm.allow_delegation("pop/localhost", "pop/bound.test")
    keytab = realm.keytab("pop/bound.test", "pop/localhost")
    give_to_service(keytab)
    inner = ground.site(
        ["kerberos-service"],
        kerberos={
            "principals": [f"pop/bound.test@{realm.name}"], "client_principal": f"pop/localhost@{realm.name}",
            "channel_binding": "require",
        },
        keytab=keytab,
    )  # fmt: skip
    for listener, tls in (("pop3", "stls"), ("pop3s", "implicit")):
        for binding in (True, False):
            it = ground.site(
                ["kerberos-delegated"],
                pool={
                    "servers": [f"localhost:{inner.proxy.port(listener)}"], "tls": tls, "ca": str(authority.ca),
                    "kerberos": {"principal": "pop/bound.test", "channel_binding": binding},
                },
            )  # fmt: skip
            if binding:
                status, output = curl(it, home)
                assert status == 0, output + it.proxy.log()
            else:
                assert refusal(it, home).startswith("-ERR [SYS/PERM] your mail server refuses the proxy")


# ---- master users ----


def test_master_user_by_plain(ground: Grounds, home: Path) -> None:
    with master_dovecot() as (backend, password), public_directory("secrets") as directory:
        secret = directory / "master.password"
        secret.write_text(password)
        secret.chmod(0o600)
        give_to_service(secret)
        backend.deliver("alice", [MESSAGE])
        master = {"user": MASTER, "password": {"file": str(secret)}, "mechanism": "plain"}
        link = {"servers": [f"127.0.0.1:{backend.port}"], "allow_cleartext": True, "master": master}
        it = ground.site(["master"], pool=link)
        status, output = curl(it, home)
        assert status == 0, output + it.proxy.log()
        assert backend.told("method=PLAIN")
    assert login_record(it)["popproxy.strategy"] == "master"


# ---- popproxy check ----


def test_check_rehearses_delegation(ground: Grounds) -> None:
    it = ground.site(["kerberos-delegated", "kerberos-transition", "kerberos-service", "kerberos-forwarded"])
    done = it.proxy.command("check")
    text = " ".join(done.stdout.split())
    for finding in (
        f"the KDC lets {it.service} act at {BACKEND} for users with a ticket",
        f"the KDC lets {it.service} act at {BACKEND} for users without a ticket",
        f"the KDC issues tickets for {BACKEND}",
        "offers AUTH GSSAPI",
    ):
        assert finding in text, done.stdout


def test_check_finds_what_the_kdc_does_not_allow(ground: Grounds) -> None:
    ground.realm.allow_transition("pop/localhost", allow=False)
    try:
        it = ground.site(["kerberos-transition"])
        text = " ".join(it.proxy.command("check").stdout.split())
        assert "kerberos-transition: the KDC gives" in text, text
        assert "+ok_to_auth_as_delegate" in text
    finally:
        ground.realm.allow_transition("pop/localhost")
    for principal, told in (
        (FORBIDDEN, "krbAllowedToDelegateTo"),
        ("pop/nowhere.test", "the KDC knows no pop/nowhere.test"),
    ):
        it = ground.site(["kerberos-delegated"], pool={"kerberos": {"principal": principal, "layers": ["none"]}})
        done = it.proxy.command("check")
        assert done.returncode == 78, done.stdout
        assert told in " ".join(done.stdout.split()), done.stdout
