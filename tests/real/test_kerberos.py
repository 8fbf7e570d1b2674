"""Single sign-on through the whole proxy: a real KDC, clients with tickets, a Dovecot that knows only passwords."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest
import yaml

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.kpop_client import KpopClient, KpopRefusedError, hello
from tests.peers.krb5_client import ApReqClient
from tests.peers.messages import wire
from tests.peers.process import public_directory, require, wait_until
from tests.peers.programs import run_on_terminal
from tests.peers.proxy import POPPROXY, proxies
from tests.real.kerberos_clients import IN, WRONG, password_login
from tests.real.kerberos_rig import MESSAGE, Site, configuration, curl, fetchmail, perl_kpop, pop3test

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
    assert lines.decode() in output, output[:3000]
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
        assert client.command("PASS hej") == IN
        assert client.command("RETR 1").startswith(b"+OK")
        assert client.body() == wire(MESSAGE) + b".\r\n"
        assert client.command("QUIT").startswith(b"+OK")


def test_krb5_sendauth_and_stls_behind_it(maildrop: Site, authority: Authority) -> None:
    it = maildrop
    with KpopClient(it.proxy.port("kpop")) as client:
        client.authenticate(it.realm.config, it.tickets["alice"], it.service)
        client.line()
        assert client.command("STLS").startswith(b"+OK")
        client.start_tls(ssl.create_default_context(cafile=str(authority.ca)))
        assert client.command("USER alice").startswith(b"+OK")
        assert client.command("PASS hej") == IN
        assert client.command("RETR 1").startswith(b"+OK")
        assert client.body() == wire(MESSAGE) + b".\r\n"
        assert client.command("QUIT").startswith(b"+OK")
    it.proxy.settled()
    assert login_record(it)["tls.version"] == "1.3"


@pytest.mark.parametrize("how", ["mutual", "alone"])
def test_perl_over_kpop(maildrop: Site, home: Path, how: str) -> None:
    status, output = perl_kpop(maildrop, home, how)
    assert status == 0, output
    assert MESSAGE.decode() + ".\n" in output
    assert maildrop.backend.maildrop("alice") == []
    maildrop.proxy.settled()
    assert login_record(maildrop)["auth.mechanism"] == "KPOP"


def test_kpop_client_that_pipelines_everything(maildrop: Site) -> None:
    it = maildrop
    token = ApReqClient(it.tickets["alice"], it.service).ap_req
    with KpopClient(it.proxy.port("kpop")) as client:
        client.send(hello(token) + b"USER alice\r\nPASS x\r\n")
        assert client.line().startswith(b"\0\0\0\0\0")  # the greeting behind it
        assert client.line().startswith(b"+OK send PASS")
        assert client.line() == IN


@pytest.mark.parametrize("mechanism", ["USER", "PLAIN"])
def test_password_that_the_kdc_judges(maildrop: Site, mechanism: str) -> None:
    it = maildrop
    password = it.realm.passwords["alice"]
    for tried, answer in ((password, IN), ("canary-wrong", WRONG)):
        assert password_login(it.proxy, "alice", tried, mechanism) == answer
    judged(it, None, "bad_credentials")
    assert it.proxy.audit("login")[-1]["krb5.principal"] == f"alice@{it.realm.name}"


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
