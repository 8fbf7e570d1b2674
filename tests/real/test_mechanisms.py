"""Every mechanism by a real client that speaks it, to a Dovecot behind, by each way of logging in there."""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from scramp import ScramClient

from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clients import Account, Auth, Client, Curl, Fetchmail, Mpop, Poplib
from tests.peers.dovecot import INTROSPECTION, Dovecot, dovecot
from tests.peers.hashes import ssha512
from tests.peers.issuer import Issuer, issuing
from tests.peers.line_client import LineClient
from tests.peers.messages import SAMPLES, unstuffed, wire
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, Record, proxies, settings
from tests.peers.token_endpoint import CLIENT, TokenEndpoint, token_endpoint
from tests.real.kerberos_rig import MASTER, POP3TEST, ROOT, give_to_service

SASL = [
    "EXTERNAL", "OAUTHBEARER", "XOAUTH2", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1",
    "CRAM-MD5",
]  # fmt: skip
PASSWORDS = ("user", "plain", "login")
STRATEGIES = {
    "forward": ["forward", "stored"],
    "stored": ["stored"],
    "apop": ["apop"],
    "master by USER": ["master"],
    "master by PLAIN": ["master"],
    "external": ["external"],
    "xoauth2": ["xoauth2"],
}
"""Pool's logins, by what they are called here."""
_BACKEND = """\
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = {directory}/masters
  master = yes
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2
  args = {directory}/oauth2
}}
ssl_ca = <{ca}
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_username_from_cert = yes
ssl_cert_username_field = commonName
"""
WAYS: list[tuple[Client, Auth]] = [
    *((Curl(), auth) for auth in ("plain", "login", "cram-md5", "oauthbearer", "xoauth2", "external")),
    *((Mpop(), auth) for auth in ("scram-sha-1", "scram-sha-256", "external", "apop", "oauthbearer", "xoauth2")),
    *((Fetchmail(), auth) for auth in ("apop", "cram-md5", "rpop")),
    *((Poplib(), auth) for auth in ("user", "apop", "rpop")),
]


@dataclass(frozen=True, slots=True)
class Stage:
    """A Dovecot that can be logged in to in every way, an issuer of tokens, and what alice proves herself with.

    `files` are what popproxy needs behind: the master's password, its certificate, its secret at `endpoint`.
    """

    backend: Dovecot
    endpoint: TokenEndpoint
    files: Path
    ours: CertificateFiles
    issuer: Issuer
    certificate: CertificateFiles
    rpop: str

    def pool(self, strategy: str) -> dict[str, Any]:
        """The pool that logs in so."""
        found: dict[str, Any] = {"login": STRATEGIES[strategy]}
        if strategy in ("external", "xoauth2"):
            found |= {"tls": "stls", "allow_cleartext": False, "ca": str(self.endpoint.ca)}
        if strategy == "external":
            found["certificate"] = {"cert": str(self.ours.cert), "key": str(self.ours.key)}
        elif strategy == "xoauth2":
            found["xoauth2"] = {
                "endpoint": f"{self.endpoint.url}/token", "client_id": CLIENT, "ca": str(self.endpoint.ca),
                "client_secret": {"file": str(self.files / "secret")},
            }  # fmt: skip
        elif strategy.startswith("master"):
            mechanism = "plain" if strategy.endswith("PLAIN") else "user"
            password = {"file": str(self.files / "master")}
            found["master"] = {"user": MASTER, "password": password, "mechanism": mechanism}
        return found

    def proof(self, auth: Auth) -> str:
        """What stands in the place of the password."""
        if auth == "rpop":
            return self.rpop
        return self.issuer.token("alice") if auth in ("oauthbearer", "xoauth2") else self.backend.users["alice"]


@pytest.fixture(scope="module")
def stage(authority: Authority, server_certificate: CertificateFiles) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(public_directory("mechanisms"))
        endpoint = stack.enter_context(token_endpoint(server_certificate, authority.ca))
        endpoint.owner = "alice"
        master = canary("master")
        for name, text in (("master", master), ("secret", endpoint.secret)):
            (directory / name).write_text(text)
            (directory / name).chmod(0o600)
            give_to_service(directory / name)
        (directory / "masters").write_text(f"{MASTER}:{{PLAIN}}{master}\ncertified:{{PLAIN}}::::::nopassword=y\n")
        (directory / "oauth2").write_text(INTROSPECTION.format(url=endpoint.url, ca=authority.ca))
        backend = stack.enter_context(
            dovecot(
                server_certificate, mechanisms="plain login apop external xoauth2",
                extra=_BACKEND.format(directory=directory, ca=authority.ca),
            )
        )  # fmt: skip
        yield Stage(
            backend, endpoint, directory, authority.client(common_name="certified"),
            stack.enter_context(issuing(authority)), authority.client(common_name="alice"), canary("rpop"),
        )  # fmt: skip


def low_port() -> int:
    """fetchmail speaks RPOP to ports below 1024 only. By chance: other runs look for one at the same time."""
    for port in random.sample(range(640, 1023), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port below 1024 is free")


@pytest.fixture(scope="module", params=list(STRATEGIES))
def proxy(
    request: pytest.FixtureRequest, stage: Stage, authority: Authority, server_certificate: CertificateFiles
) -> Iterator[tuple[str, Proxy]]:
    """A proxy for each way of logging in at the Dovecot; its listeners take everything."""
    with public_directory("users") as directory, proxies() as start:
        users = directory / "users"
        users.write_text(f"alice:{ssha512(stage.backend.users['alice'])}\n")
        give_to_service(users)
        listener: dict[str, Any] = {
            "sasl": SASL, "apop": True, "rpop": "id", "client_ca": str(authority.ca), "authenticate": ["users"],
        }  # fmt: skip
        configuration = settings(
            f"127.0.0.1:{stage.backend.port}", server_certificate, listener=listener, pool=stage.pool(request.param),
            users={"file": str(users)}, oauth={"issuers": [stage.issuer.section()]}, rpop={"networks": ["127.0.0.0/8"]},
            external={"rules": [{"take": "common_name"}]},
        )  # fmt: skip
        low = {**configuration["listeners"][0], "name": "low", "listen": [f"127.0.0.1:{low_port()}"]}
        old = {**configuration["listeners"][1], "name": "old", "listen": ["127.0.0.1:0"], "sasl": ["XOAUTH2"]}
        configuration["listeners"] += [low, old]
        running = start(configuration, vault={"alice": stage.backend.users["alice"]})
        done = running.command("vault", "set", "alice", "--kind", "rpop", "--stdin", text=stage.rpop)
        assert done.returncode == 0, done.stderr
        yield request.param, running


def expected(strategy: str, mechanism: str) -> str:
    """What the audit log must say."""
    if strategy == "forward":
        return "forward" if mechanism.lower() in PASSWORDS else "stored"
    return strategy.partition(" ")[0]


def login_of(records: list[Record]) -> tuple[str, str, str]:
    record = next(record for record in records if record["event.action"] == "login")
    return record["user.name"], record["auth.mechanism"], record["popproxy.strategy"]


@pytest.mark.parametrize(("client", "auth"), WAYS, ids=lambda value: value.name if isinstance(value, Client) else value)
def test_real_client_logs_in_by_every_strategy(
    stage: Stage, proxy: tuple[str, Proxy], authority: Authority, home: Path, client: Client, auth: Auth
) -> None:
    strategy, running = proxy
    stage.backend.deliver("alice", SAMPLES[:2])
    listener = "low" if auth == "rpop" else "old" if auth == "xoauth2" else "pop3s"
    account = Account(
        running.port(listener), "alice", stage.proof(auth), authority.ca, "plain" if auth == "rpop" else "tls", auth
    )
    if auth == "external":
        account = replace(account, certificate=stage.certificate)
    before = len(running.settled())

    assert sorted(client.fetch(account, home)) == sorted(map(wire, SAMPLES[:2]))

    assert login_of(running.settled(before)) == ("alice", auth.upper(), expected(strategy, auth))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"])
def test_scramp_logs_in_bound_to_tls(
    stage: Stage, proxy: tuple[str, Proxy], authority: Authority, server_certificate: CertificateFiles, mechanism: str
) -> None:
    strategy, running = proxy
    stage.backend.deliver("alice", SAMPLES[:1])
    certificate = x509.load_pem_x509_certificate(server_certificate.cert.read_bytes())
    binding = ("tls-server-end-point", certificate.fingerprint(hashes.SHA256()))
    exchange = ScramClient([mechanism], "alice", stage.backend.users["alice"], channel_binding=binding)
    before = len(running.settled())
    tls = ssl.create_default_context(cafile=str(authority.ca))
    with LineClient(running.port("pop3s"), tls=tls) as client:
        assert client.line().startswith(b"+OK")

        def say(text: str) -> str:
            answer = client.command(base64.b64encode(text.encode()))
            assert answer.startswith(b"+ "), answer
            return base64.b64decode(answer[2:]).decode()

        assert client.command(f"AUTH {mechanism}") == b"+ "
        exchange.set_server_first(say(exchange.get_client_first()))
        exchange.set_server_final(say(exchange.get_client_final()))  # raises if the server does not know the password
        assert client.command("") == b"+OK Logged in"
        assert client.command("RETR 1").startswith(b"+OK")
        assert unstuffed(client.body()) == wire(SAMPLES[0])
        client.command("QUIT")
    assert login_of(running.settled(before)) == ("alice", mechanism, expected(strategy, mechanism))


@pytest.mark.parametrize("proxy", ["stored"], indirect=True)
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"])
def test_cyrus_sasl_logs_in(stage: Stage, proxy: tuple[str, Proxy], home: Path, mechanism: str) -> None:
    _, running = proxy
    stage.backend.deliver("alice", SAMPLES[:2])
    before = len(running.settled())
    output = cyrus(
        home, running.port(), "-m", mechanism, "-u", "alice", "-a", "alice", "-w", stage.backend.users["alice"]
    )
    assert f"+OK 2 {sum(len(wire(message)) for message in SAMPLES[:2])}" in output.splitlines(), output
    assert login_of(running.settled(before)) == ("alice", mechanism, "stored")


@pytest.mark.parametrize("proxy", ["stored"], indirect=True)
@pytest.mark.parametrize("mechanism", ["PLAIN", "CRAM-MD5", "SCRAM-SHA-256"])
def test_cyrus_sasl_with_a_wrong_password_does_not(
    stage: Stage, proxy: tuple[str, Proxy], home: Path, mechanism: str
) -> None:
    output = cyrus(home, proxy[1].port(), "-m", mechanism, "-u", "alice", "-a", "alice", "-w", canary())
    assert "-ERR [AUTH]" in output, output


def cyrus(directory: Path, port: int, *options: str) -> str:
    """What Cyrus's pop3test prints: a client by Cyrus SASL, which shares no code with ours."""
    assert POP3TEST.exists(), "pop3test is missing, run: make setup"
    libraries = {str(path.parent) for path in (ROOT / ".venv/peers/cyrus").rglob("*.so.*")}
    done = subprocess.run(
        [POP3TEST, "-p", str(port), *options, "localhost"], cwd=directory, input="STAT\r\nQUIT\r\n", text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory), "LD_LIBRARY_PATH": ":".join(sorted(libraries))},
    )  # fmt: skip
    return done.stdout


Refusal = Callable[[Stage, Account], Account]
WRONG: dict[Auth, Refusal] = {
    "plain": lambda _stage, account: replace(account, password=canary()),
    "cram-md5": lambda _stage, account: replace(account, password=canary()),
    "oauthbearer": lambda stage, account: replace(account, password=stage.issuer.token("bob")),
    "xoauth2": lambda stage, account: replace(account, password=stage.issuer.token("alice", aud="wiki")),
    "external": lambda _stage, account: replace(account, user="bob"),
}


@pytest.mark.parametrize("auth", WRONG)
@pytest.mark.parametrize("proxy", ["stored"], indirect=True)
def test_who_proves_nothing_is_refused_in_words_that_curl_understands(
    stage: Stage, proxy: tuple[str, Proxy], authority: Authority, home: Path, auth: Auth
) -> None:
    _, running = proxy
    account = Account(
        running.port("old" if auth == "xoauth2" else "pop3s"), "alice", stage.proof(auth), authority.ca, "tls", auth,
        certificate=stage.certificate if auth == "external" else None,
    )  # fmt: skip
    before = len(running.audit("session_end"))
    with pytest.raises(AssertionError, match=r"curl: \(67\)"):  # login denied
        Curl().fetch(WRONG[auth](stage, account), home)
    records = running.sessions(before + 1)[-1]
    assert [record["event.outcome"] for record in records if record["event.action"] == "auth"] == ["failure"]
    assert not [record for record in records if record["event.action"] == "login"]
