"""Listeners with keytab, principals and realms of their own, and what `popproxy check` and the metrics say of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.kdc import Realm, realm
from tests.peers.kpop_client import KpopClient, KpopRefusedError
from tests.peers.krb5_client import ApReqClient
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import Proxy, proxies
from tests.real.kerberos_clients import IN, by_gssapi, by_kpop, password_login
from tests.real.kerberos_rig import SERVICE, configuration, give_to_service, master_dovecot

INSIDE = "pop/inside.test"


@contextlib.contextmanager
def populated() -> Iterator[Realm]:
    with realm() as it:
        it.user("alice")
        it.service(SERVICE, INSIDE)
        yield it


@pytest.fixture(scope="module")
def home_realm() -> Iterator[Realm]:
    """The realm of alice and of two services."""
    with populated() as it:
        yield it


@pytest.fixture
def own_realm() -> Iterator[Realm]:
    """The same for a test that gives services other keys."""
    with populated() as it:
        yield it


@contextlib.contextmanager
def two_listeners(it: Realm, certificate: CertificateFiles, **own: Any) -> Iterator[Proxy]:
    """`kpop` is for pop/localhost, `inside` for pop/inside.test, with a keytab of that one's key only."""
    with contextlib.ExitStack() as stack:
        backend, password = stack.enter_context(master_dovecot())
        directory = stack.enter_context(public_directory("secrets"))
        start = stack.enter_context(proxies())
        complete = configuration(it, backend, certificate, directory, password=password)
        keytab = it.keytab(INSIDE)
        give_to_service(keytab)
        complete["listeners"].append(
            {
                "name": "inside", "listen": ["127.0.0.1:0"], "protocol": "kpop",
                "kerberos": {"keytab": str(keytab), "principals": [f"{INSIDE}@{it.name}"], **own},
            }
        )  # fmt: skip
        yield start(complete, env=it.environment)


def login(proxy: Proxy, listener: str, it: Realm, ccache: Path, service: str) -> str:
    """The answer to PASS, or nothing if the ticket is refused."""
    with KpopClient(proxy.port(listener)) as client:
        try:
            client.authenticate(it.config, ccache, f"{service}@{it.name}")
        except KpopRefusedError:
            return ""
        client.line()
        client.command("USER alice")
        return client.command("PASS x").decode()


def test_each_listener_takes_tickets_for_its_own_name(home_realm: Realm, server_certificate: CertificateFiles) -> None:
    ccache = home_realm.kinit("alice")
    with two_listeners(home_realm, server_certificate) as proxy:
        answers = {
            (listener, service): login(proxy, listener, home_realm, ccache, service)
            for listener in ("kpop", "inside")
            for service in (SERVICE, INSIDE)
        }
        assert answers == {
            ("kpop", SERVICE): "+OK Logged in", ("kpop", INSIDE): "",
            ("inside", SERVICE): "", ("inside", INSIDE): "+OK Logged in",
        }  # fmt: skip
        proxy.settled()
        failures = [record["event.reason"] for record in proxy.audit("auth") if record["event.outcome"] == "failure"]
        assert failures == ["kerberos_service", "kerberos_service"]


def test_each_listener_lets_in_its_own_realms(home_realm: Realm, server_certificate: CertificateFiles) -> None:
    with realm("PARTNER.TEST") as partner:
        home_realm.trust(partner)
        home_realm.stop()
        home_realm.start()
        partner.user("alice")
        mine, theirs = home_realm.kinit("alice"), partner.kinit("alice")
        names = [{"realm": home_realm.name}, {"realm": partner.name}]
        with contextlib.ExitStack() as stack:
            backend, password = stack.enter_context(master_dovecot())
            directory = stack.enter_context(public_directory("secrets"))
            start = stack.enter_context(proxies())
            complete = configuration(
                home_realm, backend, server_certificate, directory, password=password, realms=names
            )
            complete["listeners"].append(
                {
                    "name": "inside", "listen": ["127.0.0.1:0"], "protocol": "kpop",
                    "kerberos": {"realms": [home_realm.name]},
                }
            )  # fmt: skip
            proxy = start(complete, env=home_realm.environment)
            assert login(proxy, "kpop", home_realm, theirs, SERVICE) == "+OK Logged in"
            assert login(proxy, "inside", home_realm, mine, SERVICE) == "+OK Logged in"
            refused = login(proxy, "inside", home_realm, theirs, SERVICE)
            assert refused == "-ERR [AUTH] authentication failed"
            wait_until(lambda: len(proxy.audit("auth")) == 3, "the records of all three")
            assert proxy.audit("auth")[-1]["event.reason"] == "not_mapped"


def test_new_key_needs_no_restart(own_realm: Realm, server_certificate: CertificateFiles) -> None:
    """By GSSAPI, by KPOP, and for the proof of the KDC when it checks passwords; tickets of the old key stay good."""
    it, ours = own_realm, f"{SERVICE}@{own_realm.name}"

    def ticket() -> Path:
        ccache = it.kinit("alice")
        it.kvno(ccache, SERVICE)
        return ccache

    def gets_in(ccache: Path) -> list[bool]:
        ways = [way(proxy, ApReqClient(ccache, ours).ap_req) is None for way in (by_gssapi, by_kpop)]
        return [*ways, password_login(proxy, "alice", it.passwords["alice"]) == IN]

    with two_listeners(it, server_certificate) as proxy:
        old = ticket()
        assert gets_in(old) == [True, True, True]
        it.rotate(SERVICE)
        new = ticket()
        assert gets_in(new) == [False, False, False]
        assert gets_in(old) == [True, True, False], "the KDC cannot prove itself any more"
        reasons = {"kerberos_keytab", "kdc_not_proven"}
        wait_until(
            lambda: {record.get("event.reason") for record in proxy.audit("auth")} >= reasons, "both reasons", 20
        )
        it.add_to_keytab(Path(proxy.configuration["kerberos"]["keytab"]), SERVICE)
        assert gets_in(new) == [True, True, True]
        assert gets_in(old) == [True, True, True]


def test_metrics_say_which_keytab_cannot_be_used(home_realm: Realm, server_certificate: CertificateFiles) -> None:
    with two_listeners(home_realm, server_certificate) as proxy:

        def readable() -> dict[str, float]:
            prefix = 'popproxy_keytab_readable{listener="'
            return {k[len(prefix) : -2]: v for k, v in proxy.metrics().items() if k.startswith(prefix)}

        assert readable() == {"pop3": 1, "pop3s": 1, "kpop": 1, "inside": 1}
        keytab = Path(proxy.configuration["listeners"][-1]["kerberos"]["keytab"])
        keytab.rename(keytab.with_suffix(".away"))
        assert readable() == {"pop3": 1, "pop3s": 1, "kpop": 1, "inside": 0}
        keytab.with_suffix(".away").rename(keytab)
        assert readable()["inside"] == 1


def test_check_asks_the_kdc(home_realm: Realm, server_certificate: CertificateFiles) -> None:
    it = home_realm
    service = f"{SERVICE}@{it.name}"
    with two_listeners(it, server_certificate) as proxy:

        def checked() -> str:
            return " ".join(proxy.command("check").stdout.split())

        text = checked()
        assert f"ok the KDC issues tickets for {service} with version 1 (aes256-cts-hmac-sha1-96)" in text
        assert "kerberos at pop3, pop3s, kpop" in text
        assert f"ok the KDC issues tickets for {INSIDE}@{it.name} with version 1" in text
        assert f"ok the clock agrees with that of the KDC of {it.name}" in text
        assert "ok clients that look localhost up find no other name for it" in text
        assert "warning inside.test does not resolve here" in text
        it.rotate(INSIDE)
        text = checked()
        assert f"problem the KDC refuses the key of {INSIDE}@{it.name} in the keytab (version 1)" in text
        assert f"ok the KDC issues tickets for {service}" in text
        it.kadmin("delprinc", INSIDE)
        assert f"warning the KDC does not know {INSIDE}@{it.name} as one that can log in" in checked()
        it.service(INSIDE)
        it.stop()
        try:
            text = checked()
        finally:
            it.start()
        assert f"problem no KDC of {it.name} can be found, or none answers: passwords cannot be checked" in text
        assert text.count("passwords cannot be checked") == 1


def test_check_does_not_wait_for_a_silent_kdc(home_realm: Realm, server_certificate: CertificateFiles) -> None:
    with two_listeners(home_realm, server_certificate) as proxy, home_realm.silent():
        text = " ".join(proxy.command("check").stdout.split())
    assert f"no KDC of {home_realm.name} has answered within 10 s: passwords cannot be checked" in text


def test_check_compares_versions_of_the_same_key(home_realm: Realm, server_certificate: CertificateFiles) -> None:
    """As after the KDC's database was restored from a backup: the key is the same, its number is not."""
    with two_listeners(home_realm, server_certificate) as proxy:
        home_realm.kadmin("modprinc", "-kvno", "7", INSIDE)
        text = " ".join(proxy.command("check").stdout.split())
    assert f"problem the KDC issues tickets for {INSIDE}@{home_realm.name} with key version 7, the keytab has" in text
