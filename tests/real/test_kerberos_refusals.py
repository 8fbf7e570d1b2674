"""Tickets that must not open a maildrop: what the client is told, what is on record, and that nothing else suffers."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from popproxy.kerberos.refusal import MAX_TOKEN
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clock import HOUR, shifted
from tests.peers.kdc import Realm, realm
from tests.peers.kpop_client import KpopClient, KpopRefusedError
from tests.peers.krb5_client import KRB5_OID, ApReqClient, gss_framed, initiator
from tests.peers.line_client import LineClient
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, proxies
from tests.peers.tickets import Initiator
from tests.real.kerberos_clients import (
    IN,
    TRY_LATER,
    WAYS,
    WRONG,
    WRONG_TICKET_ENDS,
    at_choice,
    b64,
    by_token,
    kpop_login,
    next_session_is_fine,
    password_login,
    quiet,
    refused,
    watched,
)
from tests.real.kerberos_rig import OTHER_SERVICES, Site, configuration, curl, perl_kpop

both_ways = pytest.mark.parametrize("way", list(WAYS))
INTEGRITY, EXPIRED, NOT_YET, REPLAY, WRONG_SERVICE, SKEWED, GENERIC = b"31", b"32", b"33", b"34", b"35", b"37", b"60"
"""error-codes of KRB-ERRORs (RFC 4120 section 7.5.9)."""


@contextlib.contextmanager
def another_proxy(it: Site, certificate: CertificateFiles, **kerberos: object) -> Iterator[Proxy]:
    """A second process, which shares the directory of the replay cache with the first."""
    with proxies() as start, public_directory("secrets") as directory:
        complete = configuration(it.realm, it.backend, certificate, directory, password="canary-any", **kerberos)
        for section in ("kerberos", "pools"):
            complete[section] = {**it.proxy.configuration[section], **(kerberos if section == "kerberos" else {})}
        yield start(complete, env=it.realm.environment)


@pytest.fixture(scope="module")
def second(kerberos: Site, server_certificate: CertificateFiles) -> Iterator[Proxy]:
    with another_proxy(kerberos, server_certificate) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def elsewhere(kerberos: Site) -> Iterator[Realm]:
    """A realm that ours trusts, and that is not in the configuration. It has a service of our name, too."""
    with realm("ELSEWHERE.TEST") as other:
        kerberos.realm.trust(other)
        kerberos.realm.stop()
        kerberos.realm.start()
        other.user("alice")
        other.service("pop/localhost")
        yield other


def ticket(it: Site, service: str | None = None, ccache: Path | None = None, shift: int = 0) -> bytes:
    """A fresh AP-REQ of alice's."""
    return ApReqClient(ccache or it.tickets["alice"], service or it.service, shift=shift).ap_req


def answer(way: str, code: bytes) -> bytes:
    """What a client is told that comes this way: the code of a KRB-ERROR, and the same about everything by GSSAPI."""
    return code if way == "KPOP" else WRONG


# ---- once only ----


@pytest.mark.parametrize("where", ["same", "other"])
@both_ways
@pytest.mark.parametrize("first", list(WAYS))
def test_what_was_sent_once_is_refused_for_ever(
    maildrop: Site, second: Proxy, first: str, way: str, where: str
) -> None:
    """In the same process and in another one, however it came first, and however it comes again."""
    it = maildrop
    other = it.proxy if where == "same" else second
    token = ticket(it)
    assert WAYS[first](it.proxy, token) is None
    for _ in range(2):
        with refused(other, way, "kerberos_replay", WRONG_TICKET_ENDS[way]):
            assert WAYS[way](other, token) == answer(way, REPLAY)
    next_session_is_fine(it, other)


def test_token_of_a_gssapi_client_does_not_open_kpop(maildrop: Site) -> None:
    """Where it would not be bound to its channel any more."""
    it = maildrop
    token = initiator(it.tickets["alice"]).step() or b""
    with refused(it.proxy, "KPOP", "kerberos_garbage", WRONG_TICKET_ENDS["KPOP"]):
        assert WAYS["KPOP"](it.proxy, token.partition(KRB5_OID + b"\x01\x00")[2]) == GENERIC
    with refused(it.proxy, "GSSAPI", "kerberos_replay", WRONG_TICKET_ENDS["GSSAPI"]):
        assert by_token(it.proxy.port(), token) == WRONG
    next_session_is_fine(it)


@pytest.mark.parametrize("mutual", [True, False])
def test_repeated_token_of_the_gssapi_library(maildrop: Site, second: Proxy, mutual: bool) -> None:
    """With its checksum and flags, and as the AP-REQ inside it by KPOP."""
    it = maildrop
    token = initiator(it.tickets["alice"], mutual=mutual).step()
    assert token is not None
    assert by_token(it.proxy.port(), token) is None
    for proxy in (it.proxy, second):
        with refused(proxy, "GSSAPI", "kerberos_replay", "quit_before_login"):
            assert by_token(proxy.port(), token) == WRONG
        with refused(proxy, "KPOP", "kerberos_replay", "too_many_failures"):
            assert WAYS["KPOP"](proxy, token[token.index(b"\x01\x00\x6e") + 2 :]) == REPLAY


def test_of_many_at_once_one_gets_in(maildrop: Site, second: Proxy) -> None:
    """Two processes, both ways, at the same moment."""
    it = maildrop
    before = [len(quiet(proxy)) for proxy in (it.proxy, second)]
    for _ in range(10):
        token, gate = ticket(it), threading.Barrier(8)
        answers: list[bytes | None] = []

        def show(way: str, proxy: Proxy, token: bytes = token, answers: list[bytes | None] = answers) -> None:
            gate.wait(20)  # noqa: B023 - all threads have ended when it changes
            answers.append(WAYS[way](proxy, token))

        threads = [
            threading.Thread(target=show, args=(way, proxy))
            for way in WAYS
            for proxy in (it.proxy, second)
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers.count(None) == 1
        assert len(answers) == 8
    for proxy, since in zip((it.proxy, second), before, strict=True):
        reasons = {record.get("event.reason") for record in quiet(proxy)[since:] if record["event.action"] == "auth"}
        assert reasons == {"kerberos_replay"}


# ---- for somebody else ----


@both_ways
@pytest.mark.parametrize("service", OTHER_SERVICES)
def test_ticket_for_another_service_whose_key_we_have(maildrop: Site, way: str, service: str) -> None:
    it = maildrop
    with refused(it.proxy, way, "kerberos_service", WRONG_TICKET_ENDS[way]):
        assert WAYS[way](it.proxy, ticket(it, f"{service}@{it.realm.name}")) == answer(way, WRONG_SERVICE)
    next_session_is_fine(it)


def test_krb5_sendauth_with_a_ticket_for_another_service(maildrop: Site) -> None:
    it = maildrop
    with (
        refused(it.proxy, "KPOP", "kerberos_service", "too_many_failures"),
        KpopClient(it.proxy.port("kpop")) as client,
        pytest.raises(KpopRefusedError) as caught,
    ):
        client.authenticate(it.realm.config, it.tickets["alice"], f"imap/localhost@{it.realm.name}")
    assert caught.value.wire_code == int(WRONG_SERVICE)


@both_ways
def test_ticket_that_is_renamed_to_our_service(maildrop: Site, way: str) -> None:
    """The name outside is not protected; the key is what counts."""
    it = maildrop
    token = ticket(it, f"ftp/localhost@{it.realm.name}")
    assert token.count(b"ftp") == 1
    with refused(it.proxy, way, "kerberos_garbage", WRONG_TICKET_ENDS[way]):
        assert WAYS[way](it.proxy, token.replace(b"ftp", b"pop")) == answer(way, INTEGRITY)
    next_session_is_fine(it)


@both_ways
def test_ticket_of_another_realm_for_a_service_of_our_name(
    maildrop: Site, elsewhere: Realm, server_certificate: CertificateFiles, way: str
) -> None:
    """Its key is in the keytab, but its name is not among the principals."""
    it = maildrop
    ccache = elsewhere.kinit("alice")
    elsewhere.kvno(ccache, "pop/localhost@ELSEWHERE.TEST")
    keytab = it.realm.keytab("pop/localhost")
    elsewhere.add_to_keytab(keytab, "pop/localhost")
    keytab.chmod(0o644)
    with another_proxy(it, server_certificate, keytab=str(keytab)) as proxy:
        with refused(proxy, way, "kerberos_realm", WRONG_TICKET_ENDS[way]):
            token = ticket(it, "pop/localhost@ELSEWHERE.TEST", ccache)
            assert WAYS[way](proxy, token) == answer(way, WRONG_SERVICE)
        next_session_is_fine(it, proxy)


@both_ways
def test_user_of_a_trusted_realm_that_is_not_listed(maildrop: Site, elsewhere: Realm, way: str) -> None:
    """The ticket is good, but nobody has said whose maildrop it opens."""
    it = maildrop
    ccache = elsewhere.kinit("alice")
    elsewhere.kvno(ccache, it.service)
    with refused(it.proxy, way, "not_mapped", "quit_before_login"), LineClient(port_of(it, way)) as client:
        assert login(it, client, way, ccache) == WRONG
        assert client.command("QUIT").startswith(b"+OK")
    record = it.proxy.audit("auth")[-1]
    assert record["user.name"] == "alice@ELSEWHERE.TEST"
    next_session_is_fine(it)


@both_ways
@pytest.mark.parametrize("wanted", ["bob", "alice/admin", "alice@ELSEWHERE.TEST", "popproxy", "alice*popproxy"])
def test_maildrop_of_somebody_else(maildrop: Site, way: str, wanted: str) -> None:
    it = maildrop
    with refused(it.proxy, way, "authzid", "quit_before_login"), LineClient(port_of(it, way)) as client:
        assert login(it, client, way, it.tickets["alice"], wanted) == WRONG
        assert client.command("QUIT").startswith(b"+OK")
    assert it.proxy.audit("auth")[-1]["user.name"] == f"alice@{it.realm.name}"
    next_session_is_fine(it)


@both_ways
def test_principal_with_an_instance_is_nobody(maildrop: Site, way: str) -> None:
    it = maildrop
    it.realm.kvno(it.tickets["alice/admin"], it.service)
    with refused(it.proxy, way, "not_mapped", "quit_before_login"), LineClient(port_of(it, way)) as client:
        assert login(it, client, way, it.tickets["alice/admin"]) == WRONG
        assert client.command("QUIT").startswith(b"+OK")


def test_a_kpop_client_may_try_again_for_its_own_maildrop(maildrop: Site) -> None:
    it = maildrop
    story = ["auth KPOP failure authzid", "auth KPOP success", "login KPOP", "update", "session_end logout"]
    with watched(it.proxy, story), LineClient(it.proxy.port("kpop")) as client:
        assert kpop_login(client, ticket(it), "bob") == WRONG
        client.command("USER alice")
        assert client.command("PASS x") == IN
        client.command("QUIT")


def test_third_attempt_on_somebody_elses_maildrop_is_the_last(maildrop: Site) -> None:
    it = maildrop
    story = [*["auth KPOP failure authzid"] * 3, "session_end too_many_failures"]
    with watched(it.proxy, story), LineClient(it.proxy.port("kpop")) as client:
        assert kpop_login(client, ticket(it), "bob") == WRONG
        client.send(b"USER bob\r\nPASS x\r\nUSER bob\r\nPASS x\r\nUSER alice\r\nPASS x\r\n")
        assert client.rest().count(b"-ERR [AUTH]") == 2


# ---- at the wrong time ----


@both_ways
def test_ticket_that_has_expired(maildrop: Site, way: str) -> None:
    it = maildrop
    with it.realm.at(-3 * HOUR):
        ccache = it.realm.kinit("alice", "-l", "1h")
        it.realm.kvno(ccache, it.service)
    with refused(it.proxy, way, "kerberos_expired", WRONG_TICKET_ENDS[way]):
        assert WAYS[way](it.proxy, ticket(it, ccache=ccache)) == answer(way, EXPIRED)
    next_session_is_fine(it)


@both_ways
def test_ticket_that_is_not_valid_yet(maildrop: Site, way: str) -> None:
    it = maildrop
    with it.realm.at(3 * HOUR):
        ccache = it.realm.kinit("alice", "-l", "1h")
        it.realm.kvno(ccache, it.service)
    with refused(it.proxy, way, "kerberos_skew", WRONG_TICKET_ENDS[way]):
        assert WAYS[way](it.proxy, ticket(it, ccache=ccache)) == answer(way, NOT_YET)
    next_session_is_fine(it)


@both_ways
@pytest.mark.parametrize("wrong", [-HOUR, HOUR])
def test_client_whose_clock_is_wrong(maildrop: Site, home: Path, way: str, wrong: int) -> None:
    it = maildrop
    with refused(it.proxy, way, "kerberos_skew", WRONG_TICKET_ENDS[way]):
        assert WAYS[way](it.proxy, ticket(it, shift=wrong)) == answer(way, SKEWED)
    next_session_is_fine(it)


@pytest.mark.parametrize("wrong", [2 * HOUR, -2 * HOUR])
def test_curl_and_perl_with_a_wrong_clock(maildrop: Site, home: Path, wrong: int) -> None:
    """Their tickets are good at both times: it is what they say about the time that is refused."""
    it = maildrop
    with it.realm.at(-4 * HOUR):
        ccache = it.realm.kinit("alice", "-l", "20h")
        it.realm.kvno(ccache, it.service)
    early = replace(it, tickets={**it.tickets, "alice": ccache})
    with refused(it.proxy, "GSSAPI", "kerberos_skew", "client_lost"):
        status, output = curl(early, home, **shifted(wrong))
        assert status == 67, output  # CURLE_LOGIN_DENIED
    with refused(it.proxy, "KPOP", "kerberos_skew", "too_many_failures"):
        status, output = perl_kpop(early, home, **shifted(wrong))
        assert status == 1, output
    assert perl_kpop(early, home, **shifted(60))[0] == 0, "within the clock skew"


# ---- in another channel ----


def test_channel_binding_that_is_required(
    maildrop: Site, server_certificate: CertificateFiles, authority: Authority
) -> None:
    it = maildrop
    tls = ssl.create_default_context(cafile=str(authority.ca))
    with another_proxy(it, server_certificate, channel_binding="require") as proxy:
        port = proxy.port("pop3s")
        for binding in (b"tls-server-end-point:" + bytes(32), b"tls-unique:" + bytes(12), None):
            token = initiator(it.tickets["alice"], channel_binding=binding).step()
            with refused(proxy, "GSSAPI", "channel_binding", "quit_before_login"):
                assert by_token(port, token, tls) == WRONG, binding
        assert (
            by_token(port, initiator(it.tickets["alice"], channel_binding=end_point(server_certificate)).step(), tls)
            is None
        )
        with refused(proxy, "GSSAPI", "channel_binding", "quit_before_login"):
            assert by_token(port, gss_framed(ticket(it)), tls) == WRONG
        with LineClient(proxy.port()) as client:
            client.line()
            assert client.command("CAPA").startswith(b"+OK")
            assert b"GSSAPI" not in client.body()
            assert client.command("AUTH GSSAPI").startswith(b"-ERR ")


def test_channel_binding_that_is_allowed(
    maildrop: Site, server_certificate: CertificateFiles, authority: Authority
) -> None:
    it = maildrop
    tls, port = ssl.create_default_context(cafile=str(authority.ca)), it.proxy.port("pop3s")
    with refused(it.proxy, "GSSAPI", "channel_binding", "quit_before_login"):
        other = initiator(it.tickets["alice"], channel_binding=b"tls-server-end-point:" + bytes(32)).step()
        assert by_token(port, other, tls) == WRONG
    for binding in (end_point(server_certificate), None):
        assert by_token(port, initiator(it.tickets["alice"], channel_binding=binding).step(), tls) is None


# ---- too large ----


def test_token_of_64_kib_is_judged_and_one_octet_more_is_not(maildrop: Site) -> None:
    it = maildrop
    good = gss_framed(ticket(it))
    with refused(it.proxy, "GSSAPI", "malformed", "quit_before_login"):
        assert by_token(it.proxy.port(), good + bytes(MAX_TOKEN + 1 - len(good))) == b"-ERR GSSAPI token too long"
    with refused(it.proxy, "GSSAPI", "kerberos_garbage", "quit_before_login"):
        assert by_token(it.proxy.port(), b"t" * MAX_TOKEN) == WRONG
    assert by_token(it.proxy.port(), good) is None, "nobody has looked at it, so it is no replay"


def test_ap_req_of_64_kib_is_judged_and_one_octet_more_is_not(maildrop: Site) -> None:
    it = maildrop
    good = ticket(it)
    with refused(it.proxy, "KPOP", "malformed", "protocol"):
        assert WAYS["KPOP"](it.proxy, good + bytes(MAX_TOKEN + 1 - len(good))) == GENERIC
    with refused(it.proxy, "KPOP", "kerberos_garbage", "too_many_failures"):
        assert WAYS["KPOP"](it.proxy, b"t" * MAX_TOKEN) is not None
    assert WAYS["KPOP"](it.proxy, good) is None, "nobody has looked at it, so it is no replay"


# ---- a KDC that is none ----


def test_forged_kdc_vouches_in_vain(maildrop: Site, server_certificate: CertificateFiles) -> None:
    """It has our realm's name, our users and our service, and whatever passwords it likes; it has not our key."""
    it = maildrop
    with realm(it.realm.name) as forged:
        chosen = forged.user("alice")
        forged.service("pop/localhost")
        fooled = replace(it, realm=forged)
        with another_proxy(fooled, server_certificate) as proxy:
            for mechanism in ("USER", "PLAIN"):
                errors = ["cannot authenticate"]
                with refused(proxy, mechanism, "kdc_not_proven", "client_lost", outcome="unknown", errors=errors):
                    assert password_login(proxy, "alice", chosen, mechanism) == TRY_LATER
            next_session_is_fine(it, proxy)
            assert proxy.audit("login")[-1]["auth.mechanism"] == "GSSAPI"
            keytab = forged.keytab("pop/localhost")
            keytab.chmod(0o644)
        with another_proxy(fooled, server_certificate, keytab=str(keytab)) as proxy:
            assert password_login(proxy, "alice", chosen) == IN, "the false KDC would do, but for the keytab"


# ---- by hand ----


def port_of(it: Site, way: str) -> int:
    return it.proxy.port("kpop" if way == "KPOP" else "pop3")


def login(it: Site, client: LineClient, way: str, ccache: Path, wanted: str = "") -> bytes:
    """Shows a ticket, and asks for a maildrop by the name of `wanted`: the answer."""
    if way == "KPOP":
        return kpop_login(client, ticket(it, ccache=ccache), wanted or "alice")
    gss = at_choice(it, client, Initiator(ccache)).gss
    return client.command(b64(gss.wrap(b"\x01\0\0\0" + wanted.encode(), confidential=False)))


def end_point(certificate: CertificateFiles) -> bytes:
    """RFC 5929 section 4, for a certificate signed with SHA-256."""
    leaf = certificate.cert.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    return b"tls-server-end-point:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf)).digest()
