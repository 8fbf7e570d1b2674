"""Single sign-on through the whole proxy: a real KDC, clients with tickets, a Dovecot that knows only passwords."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from io import BufferedRWPair
from pathlib import Path

import pytest
import yaml

from popproxy.wire.kpop import APPLICATION_VERSION, SENDAUTH_VERSION
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.kdc import realm
from tests.peers.kpop_client import KpopClient, KpopRefusedError
from tests.peers.krb5_client import ApReqClient, gss_framed
from tests.peers.messages import wire
from tests.peers.process import public_directory, require, wait_until
from tests.peers.programs import run_on_terminal
from tests.peers.proxy import POPPROXY, proxies
from tests.peers.tickets import Initiator
from tests.real.kerberos_rig import Site, configuration, fetchmail, pop3test, site

_PLUGIN = """\
#!{python}
import os, socket, threading
sock = socket.create_connection(("127.0.0.1", {port}))
def to_client():
    while data := sock.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=to_client, daemon=True).start()
while data := os.read(0, 65536):
    sock.sendall(data)
"""

MESSAGE = b"Subject: tickets\n\nNo password anywhere.\n"


@pytest.fixture(scope="module")
def kerberos(server_certificate: CertificateFiles) -> Iterator[Site]:
    with site(server_certificate) as it:
        yield it


@pytest.fixture
def maildrop(kerberos: Site) -> Site:
    kerberos.backend.deliver("alice", [MESSAGE])
    kerberos.backend.deliver("bob", [])
    return kerberos


def curl(
    it: Site, home: Path, *options: str, user: str = "alice", listener: str = "pop3", path: str = "/1"
) -> tuple[int, str]:
    scheme = "pop3s" if listener == "pop3s" else "pop3"
    url = f"{scheme}://localhost:{it.proxy.port(listener)}{path}"
    command: list[str | Path] = [require("curl"), "-sS", "--login-options", "AUTH=GSSAPI", "--user", ":", *options, url]
    done = it.run(command, home, user)
    return done.returncode, done.stdout


def login_record(it: Site) -> dict[str, object]:
    """Of the session that ended last."""
    before = it.proxy.sessions()[-1]
    (record,) = [record for record in before if record["event.action"] == "login"]
    return record


def judged(it: Site, *reasons: str | None) -> list[dict[str, object]]:
    """Waits until the latest logins have come out like this (None: well); their records."""

    def latest() -> list[dict[str, object]]:
        return it.proxy.audit("auth")[-len(reasons) :]

    wait_until(lambda: [r.get("event.reason") for r in latest()] == list(reasons), f"logins with {reasons}")
    return latest()


def test_curl_fetches_with_a_ticket(maildrop: Site, home: Path) -> None:
    status, output = curl(maildrop, home)
    assert status == 0, output
    assert output.replace("\r\n", "\n").encode() == MESSAGE
    maildrop.proxy.settled()
    record = login_record(maildrop)
    assert record["user.name"] == "alice"
    assert record["krb5.principal"] == f"alice@{maildrop.realm.name}"
    assert record["auth.mechanism"] == "GSSAPI"
    assert record["popproxy.mailbox"] == "alice"


@pytest.mark.parametrize("listener", ["pop3", "pop3s"])
def test_curl_under_tls(maildrop: Site, home: Path, authority: Authority, listener: str) -> None:
    options = ["--cacert", str(authority.ca), *(["--ssl-reqd"] if listener == "pop3" else [])]
    status, output = curl(maildrop, home, *options, listener=listener)
    assert status == 0, output
    assert output.replace("\r\n", "\n").encode() == MESSAGE


@pytest.mark.parametrize("layer", [1, 2, 4])
def test_cyrus_pop3test_in_every_layer(maildrop: Site, home: Path, layer: int) -> None:
    lines = b"Subject: big\n\n" + b"".join(b"%09d %s\n" % (n, b"0123456789" * 6) for n in range(150_000))
    assert len(lines) > 10_000_000
    maildrop.backend.deliver("alice", [MESSAGE, lines])
    output = pop3test(maildrop, home, layer, "STAT\r\nRETR 2\r\nDELE 1\r\nQUIT\r\n")
    assert "+OK Logged in" in output, output[:3000]
    assert "000149999 " in output, output[:3000]
    maildrop.proxy.settled()
    assert login_record(maildrop)["auth.mechanism"] == "GSSAPI"
    assert maildrop.proxy.sessions()[-1][-1]["event.reason"] == "logout"
    assert maildrop.backend.maildrop("alice") == [lines]


def test_fetchmail_with_gssapi(maildrop: Site, home: Path) -> None:
    port = maildrop.proxy.port()
    line = f"poll localhost proto pop3 service {port} auth gssapi no dns"
    status, output, messages = fetchmail(maildrop, home, line, options="sslproto ''")
    assert status == 0, output
    assert len(messages) == 1
    assert b"No password anywhere." in messages[0]


@pytest.mark.parametrize("stls", [False, True])
def test_stock_fetchmail_over_kpop(maildrop: Site, home: Path, authority: Authority, stls: bool) -> None:
    """It insists on the service kpop by name, so a plugin connects it."""
    plugin = home / "plugin"
    plugin.write_text(_PLUGIN.format(python=sys.executable, port=maildrop.proxy.port("kpop")))
    plugin.chmod(0o755)
    protection = f"sslproto 'TLS1.2+' sslcertck sslcertfile {authority.ca}" if stls else "sslproto ''"
    line = f"poll localhost proto kpop auth kerberos_v5 no dns plugin '{plugin}'"
    status, output, messages = fetchmail(maildrop, home, line, options=protection)
    assert status == 0, output
    assert len(messages) == 1
    assert b"No password anywhere." in messages[0]
    maildrop.proxy.settled()
    record = login_record(maildrop)
    assert record["auth.mechanism"] == "KPOP"
    assert record["krb5.principal"] == f"alice@{maildrop.realm.name}"
    assert ("tls.version" in record) == stls


def test_mutt(maildrop: Site, home: Path) -> None:
    inbox, control = home / "inbox", home / "muttrc"
    for part in ("cur", "new", "tmp"):
        (inbox / part).mkdir(parents=True)
    control.write_text(
        f'set folder="{home}"\nset spoolfile="{home}/empty"\nset mbox_type=Maildir\n'
        "set confirmappend=no\nset copy=yes\nset delete=yes\nset pop_delete=yes\nset quit=yes\n"
        "set mail_check=0\nset pop_checkinterval=0\nset pop_reconnect=no\nset sleep_time=0\nset wait_key=no\n"
        'set beep=no\nset message_cachedir=""\nset header_cache=""\n'
        "set ssl_starttls=no\nset ssl_force_tls=no\nset pop_authenticators=gssapi\n"
        f'push "<tag-pattern>~A<enter><tag-prefix-cond><copy-message><kill-line>{inbox}<enter><exit>"\n'
    )
    tickets = [f"{name}={value}" for name, value in maildrop.environment("alice", home).items() if "KRB5" in name]
    url = f"pop://alice@localhost:{maildrop.proxy.port()}/"
    run_on_terminal(["env", *tickets, "mutt", "-n", "-F", str(control), "-f", url], home)
    (message,) = [path.read_bytes() for part in ("cur", "new") for path in (inbox / part).iterdir()]
    assert b"No password anywhere." in message
    maildrop.proxy.settled()
    assert login_record(maildrop)["auth.mechanism"] == "GSSAPI"


def test_mpop(maildrop: Site, home: Path) -> None:
    inbox = home / "inbox"
    for part in ("cur", "new", "tmp"):
        (inbox / part).mkdir(parents=True)
    command: list[str | Path] = [
        require("mpop"), "--host=localhost", f"--port={maildrop.proxy.port()}", "--auth=gssapi", "--user=alice",
        "--tls=off", "--keep=on", f"--delivery=maildir,{inbox}", f"--uidls-file={home}/uidls",
    ]  # fmt: skip
    done = maildrop.run(command, home)
    assert done.returncode == 0, done.stdout
    assert len(list((inbox / "new").iterdir())) == 1


@pytest.mark.parametrize("mutual", [True, False])
def test_krb5_sendauth(maildrop: Site, mutual: bool) -> None:
    it = maildrop
    with KpopClient(it.proxy.port("kpop")) as client:
        client.authenticate(it.realm.config, it.tickets["alice"], it.service, mutual=mutual)
        assert client.line().startswith(b"+OK POP3 ready")
        assert client.command("USER alice").startswith(b"+OK")
        assert client.command("PASS hej") == b"+OK Logged in"
        assert client.command("RETR 1").startswith(b"+OK")
        assert client.body() == wire(MESSAGE) + b".\r\n"
        assert client.command("QUIT").startswith(b"+OK")


def test_kpop_client_that_pipelines_everything(maildrop: Site) -> None:
    it = maildrop
    token = ApReqClient(it.tickets["alice"], it.service).ap_req
    with KpopClient(it.proxy.port("kpop")) as client:
        client.send(
            framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION) + framed(token) + b"USER alice\r\nPASS x\r\n"
        )
        assert client.line().startswith(b"\0\0\0\0\0")  # the greeting behind it
        assert client.line().startswith(b"+OK send PASS")
        assert client.line() == b"+OK Logged in"


def test_replayed_ap_req_is_refused_everywhere(maildrop: Site) -> None:
    it = maildrop
    token = ApReqClient(it.tickets["alice"], it.service).ap_req
    hello = framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION) + framed(token)
    with KpopClient(it.proxy.port("kpop")) as client:
        client.send(hello)
        assert client.line().startswith(b"\0\0\0\0\0")
    with KpopClient(it.proxy.port("kpop")) as client:
        client.send(hello)
        answer = client.rest()
    assert answer[:1] == b"\0"
    assert int.from_bytes(answer[1:5], "big") == len(answer) - 5 > 0
    assert answer[5] == 0x7E, "no KRB-ERROR"
    with socket.create_connection(("127.0.0.1", it.proxy.port()), timeout=10) as sock, sock.makefile("rwb") as file:
        file.readline()
        file.write(b"AUTH GSSAPI " + base64.b64encode(gss_framed(token)) + b"\r\n")
        file.flush()
        assert file.readline() == b"-ERR [AUTH] authentication failed\r\n"
    records = judged(it, "kerberos_replay", "kerberos_replay")
    assert [record["auth.mechanism"] for record in records] == ["KPOP", "GSSAPI"]


def test_nobody_opens_the_maildrop_of_somebody_else(maildrop: Site, home: Path) -> None:
    it = maildrop
    status, output = curl(it, home, "--sasl-authzid", "bob")
    assert status == 67, output
    with KpopClient(it.proxy.port("kpop")) as client:
        client.authenticate(it.realm.config, it.tickets["alice"], it.service)
        client.line()
        client.command("USER bob")
        assert client.command("PASS x") == b"-ERR [AUTH] authentication failed"
        client.command("USER alice")
        assert client.command("PASS x") == b"+OK Logged in"
    status, output = curl(it, home, user="alice/admin")
    assert status == 67, output
    judged(it, "authzid", "authzid", None, "not_mapped")


def test_ticket_for_another_service_is_refused(maildrop: Site) -> None:
    it = maildrop
    with KpopClient(it.proxy.port("kpop")) as client, pytest.raises(KpopRefusedError) as caught:
        client.authenticate(it.realm.config, it.tickets["alice"], f"imap/localhost@{it.realm.name}")
    assert caught.value.wire_code is not None
    judged(it, "kerberos_service")


def test_user_of_another_realm_is_refused(maildrop: Site, home: Path) -> None:
    it = maildrop
    with realm("ELSEWHERE.TEST") as other:
        it.realm.trust(other)
        it.realm.stop()
        it.realm.start()
        other.user("alice")
        ccache = other.kinit("alice")
        with KpopClient(it.proxy.port("kpop")) as client:
            client.authenticate(it.realm.config, ccache, it.service)
            client.line()
            client.command("USER alice")
            assert client.command("PASS x") == b"-ERR [AUTH] authentication failed"
    (record,) = judged(it, "not_mapped")
    assert record["user.name"] == "alice@ELSEWHERE.TEST"


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"AUTHV0.1", b"-ERR Kerberos 4 is not supported\r\n"),
        (b"USER alice\r\n", b"-ERR this port takes only Kerberos clients that speak KPOP\r\n"),
        (b"\x16\x03\x01\x02\x00", b"\x15\x03\x01\x00\x02\x02\x28"),
        (b"\0\0\0\x05wrong\0\0\0\x09KPOPV1.0\0", b"\1"),
        (b"\xff\xff\xff\xff", b""),
    ],
)
def test_strangers_at_the_kpop_port_are_told(maildrop: Site, octets: bytes, answer: bytes) -> None:
    with KpopClient(maildrop.proxy.port("kpop")) as client:
        client.send(octets)
        assert client.rest() == answer


@pytest.mark.parametrize("length", [0, 64 * 1024 + 1, 0xFFFFFFFF])
def test_impossible_ap_req_gets_a_krb_error(maildrop: Site, length: int) -> None:
    with KpopClient(maildrop.proxy.port("kpop")) as client:
        client.send(framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION) + length.to_bytes(4, "big"))
        answer = client.rest()
    assert answer[:1] == b"\0"
    assert answer[5] == 0x7E


@pytest.mark.parametrize("mechanism", ["USER", "PLAIN"])
def test_password_that_the_kdc_judges(maildrop: Site, mechanism: str) -> None:
    it = maildrop
    password = it.realm.passwords["alice"]
    for tried, answer in ((password, b"+OK Logged in"), ("canary-wrong", b"-ERR [AUTH] authentication failed")):
        assert login(it, "alice", tried, mechanism) == answer
    judged(it, None, "bad_credentials")
    assert it.proxy.audit("login")[-1]["krb5.principal"] == f"alice@{it.realm.name}"


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_without_kdc_tickets_are_accepted_and_passwords_have_to_wait(maildrop: Site, home: Path, how: str) -> None:
    it = maildrop
    curl(it, home)  # which has the ticket for the service then
    with contextlib.ExitStack() as stack:
        if how == "stopped":
            it.realm.stop()
            stack.callback(it.realm.start)
        else:
            stack.enter_context(it.realm.silent())
        started = time.monotonic()
        assert login(it, "alice", it.realm.passwords["alice"]) == b"-ERR [SYS/TEMP] temporary problem, try again later"
        assert time.monotonic() - started < 10, "the deadline is 3 s"
        status, output = curl(it, home)
        assert status == 0, output
    judged(it, "unavailable", None)


def test_wrong_master_password_is_not_the_users_fault(
    maildrop: Site, home: Path, server_certificate: CertificateFiles
) -> None:
    it = maildrop
    with proxies() as start, public_directory("secrets") as directory:
        complete = configuration(it.realm, it.backend, server_certificate, directory, password="canary-not-it")
        proxy = start(complete, env=it.realm.environment)
        command = [require("curl"), "-sv", "--login-options", "AUTH=GSSAPI", "--user", ":"]
        done = it.run([*command, f"pop3://localhost:{proxy.port()}/1"], home)
        assert done.returncode != 0
        assert "-ERR [SYS/PERM]" in done.stdout
        assert "[AUTH]" not in done.stdout
        wait_until(lambda: bool(proxy.audit("backend_login")), "the record of the refused master user")


@pytest.mark.parametrize("binding", ["allow", "require"])
def test_channel_binding(
    maildrop: Site, server_certificate: CertificateFiles, authority: Authority, binding: str
) -> None:
    it = maildrop
    right = end_point(server_certificate)
    answers = {}
    with proxies() as start, public_directory("secrets") as directory:
        complete = configuration(
            it.realm, it.backend, server_certificate, directory, password="canary-any", channel_binding=binding
        )
        proxy = start(complete, env=it.realm.environment)
        clear = socket.create_connection(("127.0.0.1", proxy.port()), timeout=10)
        with clear, clear.makefile("rwb") as file:
            file.readline()
            file.write(b"CAPA\r\n")
            file.flush()
            capa = b"".join(iter(file.readline, b".\r\n"))
        assert (b"GSSAPI" in capa) == (binding == "allow")
        for name, given in (("right", right), ("wrong", b"tls-server-end-point:" + bytes(32)), ("none", None)):
            answers[name] = gssapi_under_tls(it, proxy.port("pop3s"), authority, given)
        proxy.settled()
        reasons = [r["event.reason"] for r in proxy.audit("auth") if r["event.outcome"] == "failure"]
    refused = b"-ERR [AUTH]"
    assert answers["right"].startswith(b"+ ")
    assert answers["wrong"].startswith(refused)
    assert answers["none"].startswith(refused if binding == "require" else b"+ ")
    assert set(reasons) == {"channel_binding"}


def test_check_finds_what_is_wrong(maildrop: Site, server_certificate: CertificateFiles) -> None:
    it = maildrop
    done = it.proxy.command("check", "--offline")
    assert done.returncode in (0, 78), done.stdout  # the ports are taken by the proxy itself
    assert f"holds {it.service}, version 1 (aes256-cts-hmac-sha1-96)" in done.stdout, done.stdout
    assert "the replay cache can be kept in" in done.stdout, done.stdout
    assert "the password of popproxy can be read" in done.stdout, done.stdout
    with public_directory("wrong") as directory:
        complete = configuration(it.realm, it.backend, server_certificate, directory, password="canary-any")
        keytab = it.realm.keytab("imap/localhost")
        keytab.chmod(0o600)
        complete["kerberos"] |= {"keytab": str(keytab), "replay_cache": str(directory / "nowhere")}
        complete["process"] = {"user": "nobody"}
        file = directory / "popproxy.yaml"
        file.write_text(yaml.safe_dump(complete))
        done = it.run([POPPROXY, "check", "--offline", "-c", file], directory)
    assert done.returncode == 78, done.stdout
    for text in (
        "has no key of a POP3 service (pop/HOST), but imap/localhost@POPPROXY.TEST",
        "cannot be read by nobody",
        "nowhere does not exist",
    ):
        assert text in " ".join(done.stdout.split()), done.stdout


def test_metrics_count_handshakes(maildrop: Site) -> None:
    it = maildrop
    before = it.proxy.metrics()
    with KpopClient(it.proxy.port("kpop")) as client:
        client.authenticate(it.realm.config, it.tickets["alice"], it.service)
        client.line()
    with KpopClient(it.proxy.port("kpop")) as client, pytest.raises(KpopRefusedError):
        client.authenticate(it.realm.config, it.tickets["alice"], f"imap/localhost@{it.realm.name}")
    with KpopClient(it.proxy.port("kpop")) as client:
        client.send(b"CAPA\r\n")
        client.rest()
    metrics = it.proxy.metrics()
    for reason in ("none", "refused", "plain_text"):
        name = f'popproxy_kpop_handshakes_total{{listener="kpop",reason="{reason}"}}'
        assert metrics[name] - before[name] == 1, name
    assert metrics["popproxy_metrics_strays_total"] == 0


@pytest.mark.parametrize("behind", ["layer", "clear", "forged"])
def test_what_is_pipelined_behind_the_choice_of_a_layer(
    maildrop: Site, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    """The client's side of the layer begins there (RFC 4422 section 3.7); a command in the clear is not executed."""
    it = maildrop
    monkeypatch.setenv("KRB5_CONFIG", str(it.realm.config))
    with socket.create_connection(("127.0.0.1", it.proxy.port()), timeout=10) as sock, sock.makefile("rwb") as file:
        client = at_choice(it, file)
        choice = client.wrap(b"\x04\0\xff\xffalice", confidential=False)
        commands = framed(client.wrap(b"DELE 1\r\nQUIT\r\n", confidential=True))
        more = {"layer": commands, "clear": b"DELE 1\r\nQUIT\r\n", "forged": commands[:-1] + b"!"}[behind]
        file.write(base64.b64encode(choice) + b"\r\n" + more)
        file.flush()
        assert file.readline() == b"+OK Logged in\r\n"
        answers = b""
        with contextlib.suppress(ConnectionError):
            while length := file.read(4):
                plain, encrypted = client.unwrap(file.read(int.from_bytes(length, "big")))
                assert encrypted
                answers += plain
    it.proxy.settled()
    end = it.proxy.sessions()[-1][-1]
    assert end["event.reason"] == ("logout" if behind == "layer" else "protocol")
    assert answers.count(b"+OK") == (2 if behind == "layer" else 0)
    assert len(it.backend.maildrop("alice")) == (0 if behind == "layer" else 1)


@pytest.mark.parametrize("layer", [2, 4])
def test_forged_and_repeated_tokens_end_the_session(
    maildrop: Site, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    it = maildrop
    monkeypatch.setenv("KRB5_CONFIG", str(it.realm.config))
    bends: list[Callable[[bytes], bytes]] = [
        lambda token: token + token,
        lambda token: token[:-1] + b"!",
        lambda token: token + b"\0\xff\xff\xff",
    ]
    for bend in bends:
        with socket.create_connection(("127.0.0.1", it.proxy.port()), timeout=10) as sock, sock.makefile("rwb") as file:
            client = at_choice(it, file)
            file.write(base64.b64encode(client.wrap(bytes([layer]) + b"\0\xff\xff", confidential=False)) + b"\r\n")
            file.flush()
            assert file.readline() == b"+OK Logged in\r\n"
            file.write(bend(framed(client.wrap(b"DELE 1\r\n", confidential=layer == 4))))
            file.flush()
            with contextlib.suppress(ConnectionError):
                file.read()
        it.proxy.settled()
        end = it.proxy.sessions()[-1][-1]
        assert end["event.reason"] == "protocol"
        assert end["pop3.committed"] is False
    assert len(it.backend.maildrop("alice")) == 1


def test_nonsense_in_the_last_step_is_on_record(maildrop: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    it = maildrop
    monkeypatch.setenv("KRB5_CONFIG", str(it.realm.config))
    with socket.create_connection(("127.0.0.1", it.proxy.port()), timeout=10) as sock, sock.makefile("rwb") as file:
        client = at_choice(it, file)
        file.write(base64.b64encode(client.wrap(b"\x07\0\0\0", confidential=False)) + b"\r\nNOOP\r\n")
        file.flush()
        assert file.readline().startswith(b"-ERR ")
        assert file.readline().startswith(b"+OK")
    (record,) = judged(it, "malformed")
    assert record["user.name"] == f"alice@{it.realm.name}"


@pytest.mark.parametrize("token", [b"garbage", b"\x60\x00", b"\0" * 1000, b"\xff" * 65_000])
def test_garbage_for_a_token(maildrop: Site, token: bytes) -> None:
    it = maildrop
    with socket.create_connection(("127.0.0.1", it.proxy.port()), timeout=10) as sock, sock.makefile("rwb") as file:
        file.readline()
        file.write(b"AUTH GSSAPI " + base64.b64encode(token) + b"\r\nNOOP\r\n")
        file.flush()
        assert file.readline() == b"-ERR [AUTH] authentication failed\r\n"
        assert file.readline().startswith(b"+OK")
    judged(it, "kerberos_garbage")


# ---- clients by hand ----


def at_choice(it: Site, file: BufferedRWPair) -> Initiator:
    """A client that has shown its ticket and may now choose a layer."""
    client = Initiator(it.tickets["alice"])
    file.readline()
    file.write(b"AUTH GSSAPI " + base64.b64encode(client.step() or b"") + b"\r\n")
    file.flush()
    client.step(base64.b64decode(file.readline()[2:]))
    file.write(b"\r\n")
    file.flush()
    offer, _ = client.unwrap(base64.b64decode(file.readline()[2:]))
    assert offer == b"\x07\x01\0\0"
    return client


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def login(it: Site, user: str, password: str, mechanism: str = "USER") -> bytes:
    """The answer to a login with a password."""
    with socket.create_connection(("127.0.0.1", it.proxy.port()), timeout=30) as sock, sock.makefile("rwb") as file:
        file.readline()
        if mechanism == "USER":
            file.write(f"USER {user}\r\nPASS {password}\r\n".encode())
            file.flush()
            file.readline()
        else:
            file.write(b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()) + b"\r\n")
            file.flush()
        return file.readline().strip()


def end_point(certificate: CertificateFiles) -> bytes:
    """RFC 5929 section 4, for a certificate signed with SHA-256."""
    leaf = ssl.PEM_cert_to_DER_cert(
        certificate.cert.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )
    return b"tls-server-end-point:" + hashlib.sha256(leaf).digest()


def gssapi_under_tls(it: Site, port: int, authority: Authority, binding: bytes | None) -> bytes:
    """The answer to the token of a client that names this channel binding."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
        tls.makefile("rwb") as file,
    ):
        file.readline()
        token = bound_token(it, binding)
        file.write(b"AUTH GSSAPI " + base64.b64encode(token) + b"\r\n")
        file.flush()
        return bytes(file.readline())


def bound_token(it: Site, binding: bytes | None) -> bytes:
    """In a process of its own, which lives in the realm."""
    script = (
        "import sys, base64, gssapi; b = base64.b64decode(sys.argv[1]);"
        "name = gssapi.Name('pop@localhost', gssapi.NameType.hostbased_service);"
        "cb = gssapi.raw.ChannelBindings(application_data=b) if b else None;"
        "c = gssapi.SecurityContext(name=name, usage='initiate', channel_bindings=cb);"
        "print(base64.b64encode(c.step()).decode())"
    )
    given = base64.b64encode(binding or b"").decode()
    done = it.run([sys.executable, "-c", script, given], Path("/"))
    assert done.returncode == 0, done.stdout
    return base64.b64decode(done.stdout)
