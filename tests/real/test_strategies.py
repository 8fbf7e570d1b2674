"""Every way to log in behind, to a real Dovecot that takes nothing else; token endpoints that are slow, or lie."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from popproxy.auth.hashes import hash_password
from popproxy.config.loader import load_file
from popproxy.types import Secret
from popproxy.vault.keys import vault_key
from popproxy.vault.store import Vault
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.dovecot import INTROSPECTION, Dovecot, dovecot
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import Proxy, Record, StartProxy, settings
from tests.peers.token_endpoint import CLIENT, Said, TokenEndpoint, token_endpoint
from tests.real.directory_rig import LATER, attempt

PASSWORD = canary("of-alice-here")
REFUSED = b"-ERR [SYS/PERM] your mail server refuses the proxy, tell your administrator"
NO_WAY = b"-ERR [SYS/PERM] no way to log in at your mail server, tell your administrator"
ALARM = "the backend refuses the proxy's credential"

_MASTER = """\
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = {file}
  master = yes
}}
"""
_CERTIFICATE = """\
ssl_ca = <{ca}
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_username_from_cert = yes
ssl_cert_username_field = commonName
"""
_OAUTH2 = """\
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {file}
}}
"""


@dataclass(frozen=True)
class Site:
    """Puts proxies, whose users file knows alice, in front of servers."""

    start: StartProxy
    authority: Authority
    certificate: CertificateFiles

    def proxy(
        self,
        server: Dovecot,
        login: list[str],
        *,
        tls: str = "stls",
        vault: Mapping[str, str] | None = None,
        **pool: Any,
    ) -> Proxy:
        link: dict[str, Any] = {"tls": tls, "ca": str(self.authority.ca), "allow_cleartext": False}
        if tls == "none":
            link = {"tls": "none"}
        complete = settings(
            f"127.0.0.1:{server.port}", self.certificate, pool={**link, "login": login, **pool},
            listener={"authenticate": ["users"]}, users={"file": str(self._users())},
        )  # fmt: skip
        return self.start(complete, vault=vault)

    def _users(self) -> Path:
        path = self.authority.ca.parent / "users-behind"
        path.write_text("".join(f"{user}:{hash_password(PASSWORD.encode())}\n" for user in ("alice", "bob")))
        path.chmod(0o644)
        return path


@pytest.fixture
def site(start_proxy: StartProxy, authority: Authority, server_certificate: CertificateFiles) -> Site:
    return Site(start_proxy, authority, server_certificate)


@contextlib.contextmanager
def secret_file(secret: str) -> Iterator[str]:
    """Readable by root, and by the proxy if nobody is root."""
    with public_directory("secret") as directory:
        path = directory / "secret"
        path.write_text(f"{secret}\n")
        path.chmod(0o600)
        yield str(path)


async def opened(proxy: Proxy, user: str = "alice") -> Record:
    """Log in, and the record of it."""
    tried = await attempt(proxy, user, PASSWORD)
    assert (tried.reply[:3], tried.messages) == (b"+OK", 1), tried.reply + proxy.log().encode()
    return proxy.audit("login")[-1]  # which is written before +OK


async def refused(proxy: Proxy, *, alarm: str = ALARM) -> tuple[bytes, str]:
    """Fail to log in: the reply, and why the audit log says that the backend did not open the maildrop."""
    before = len(proxy.audit("backend_login"))
    tried = await attempt(proxy, "alice", PASSWORD)
    await asyncio.to_thread(wait_until, lambda: len(proxy.audit("backend_login")) > before, "the record of it")
    assert alarm in proxy.log()
    return tried.reply, proxy.audit("backend_login")[-1]["event.reason"]


@pytest.fixture(scope="module")
def masters(server_certificate: CertificateFiles) -> Iterator[tuple[Dovecot, str]]:
    """A Dovecot with a master user, and the master's password."""
    password = canary("of-the-master")
    with public_directory("masters") as directory:
        file = directory / "masters"
        file.write_text(f"popproxy:{{PLAIN}}{password}\n")
        file.chmod(0o644)
        with dovecot(server_certificate, mechanisms="plain", extra=_MASTER.format(file=file)) as server:
            server.deliver("alice", [b"Subject: one\n\n1\n"])
            yield server, password


async def test_password_of_the_user_there(dovecot_server: Dovecot, site: Site) -> None:
    """USER and PASS, or APOP on a link without TLS, with what the vault keeps for that."""
    dovecot_server.deliver("alice", [b"Subject: one\n\n1\n"])
    for login, tls in (("stored", "stls"), ("apop", "none")):
        proxy = await asyncio.to_thread(site.proxy, dovecot_server, [login], tls=tls, vault={"alice": canary("own")})
        assert await refused(proxy) == (REFUSED, "proxy_credential")
        text = dovecot_server.users["alice"]
        run = await asyncio.to_thread(proxy.command, "vault", "set", "alice", "--kind", "backend", "--stdin", text=text)
        assert run.returncode == 0, run.stderr
        await asyncio.sleep(1.1)  # the running proxy looks at its vault once a second
        assert (await opened(proxy))["popproxy.strategy"] == login
        explained = proxy.command("explain", "alice").stdout
        assert f"{login}: {'USER alice and PASS' if login == 'stored' else 'APOP alice'}" in explained
        assert proxy.metrics()[f'popproxy_backend_credentials_refused_total{{strategy="{login}"}}'] == 1


async def test_new_key_of_the_vault_under_a_running_proxy(dovecot_server: Dovecot, site: Site) -> None:
    """It goes on with it, and with what is put into the vault afterwards."""
    dovecot_server.deliver("alice", [b"Subject: one\n\n1\n"])
    dovecot_server.deliver("bob", [b"Subject: one\n\n1\n"])
    vault = {"alice": dovecot_server.users["alice"]}
    proxy = await asyncio.to_thread(site.proxy, dovecot_server, ["stored"], vault=vault)
    run = await asyncio.to_thread(proxy.command, "vault", "rekey")
    assert "a running popproxy goes on with it" in run.stdout, run.stderr
    text = dovecot_server.users["bob"]
    run = await asyncio.to_thread(proxy.command, "vault", "set", "bob", "--kind", "backend", "--stdin", text=text)
    assert run.returncode == 0, run.stderr
    await asyncio.sleep(1.1)  # the running proxy looks at its vault once a second
    for user in ("alice", "bob"):
        assert (await opened(proxy, user))["popproxy.strategy"] == "stored"


@pytest.mark.parametrize("mechanism", ["user", "plain"])
async def test_master_user(masters: tuple[Dovecot, str], site: Site, mechanism: str) -> None:
    server, password = masters
    for given in (password, canary("wrong-master")):
        with secret_file(given) as file:
            master = {"user": "popproxy", "password": {"file": file}, "mechanism": mechanism}
            proxy = await asyncio.to_thread(site.proxy, server, ["master", "forward"], master=master)
            if given == password:
                assert (await opened(proxy))["popproxy.strategy"] == "master"
            else:
                assert await refused(proxy) == (REFUSED, "proxy_credential")


async def test_certificate(site: Site, server_certificate: CertificateFiles) -> None:
    """Dovecot takes whom the certificate names for a master user; another name, and a stranger, it refuses."""
    with public_directory("masters") as directory:
        (directory / "masters").write_text("popproxy:{PLAIN}::::::nopassword=y\n")
        extra = _MASTER.format(file=directory / "masters") + _CERTIFICATE.format(ca=site.authority.ca)
        with dovecot(server_certificate, mechanisms="external", extra=extra) as server:
            server.deliver("alice", [b"Subject: one\n\n1\n"])
            ours, others = (site.authority.client(common_name=name) for name in ("popproxy", "somebody"))
            for pair in (ours, others):
                shown = {"cert": str(pair.cert), "key": str(pair.key)}
                proxy = await asyncio.to_thread(site.proxy, server, ["external"], certificate=shown)
                if pair is ours:
                    assert (await opened(proxy))["popproxy.strategy"] == "external"
                    assert "AUTH EXTERNAL for alice, with the certificate" in proxy.command("explain", "alice").stdout
                    checked = proxy.command("check").stdout
                    assert "offers AUTH EXTERNAL" in checked, checked
                    assert "names CN=popproxy to servers" in checked
                else:
                    assert await refused(proxy) == (REFUSED, "proxy_credential")


@dataclass(frozen=True)
class Cloud:
    """A Dovecot that asks the endpoint whose a token is."""

    site: Site
    server: Dovecot
    endpoint: TokenEndpoint

    def proxy(self, file: str | None, *, vault: Mapping[str, str] | None = None, **section: Any) -> Proxy:
        xoauth2 = {
            "endpoint": f"{self.endpoint.url}/token", "client_id": CLIENT, "ca": str(self.endpoint.ca),
            "client_secret": {"file": file}, "deadline": "2s", **section,
        }  # fmt: skip
        return self.site.proxy(self.server, ["xoauth2"], vault=vault, xoauth2=xoauth2)


@contextlib.contextmanager
def in_the_cloud(site: Site, endpoint: TokenEndpoint) -> Iterator[Cloud]:
    """A token opens its user's maildrop."""
    with public_directory("cloud") as directory:
        file = directory / "oauth2"
        file.write_text(INTROSPECTION.format(url=endpoint.url, ca=endpoint.ca))
        file.chmod(0o644)
        os.chmod(site.authority.ca, 0o644)
        extra = _OAUTH2.format(file=file)
        with dovecot(site.certificate, mechanisms="xoauth2 oauthbearer", extra=extra) as server:
            server.deliver("alice", [b"Subject: one\n\n1\n"])
            yield Cloud(site, server, endpoint)


@pytest.fixture
def endpoint(authority: Authority, server_certificate: CertificateFiles) -> Iterator[TokenEndpoint]:
    with token_endpoint(server_certificate, authority.ca) as endpoint:
        endpoint.owner = "alice"
        yield endpoint


@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer"])
async def test_access_token_of_our_own(site: Site, endpoint: TokenEndpoint, mechanism: str) -> None:
    with in_the_cloud(site, endpoint) as cloud, secret_file(endpoint.secret) as file:
        proxy = await asyncio.to_thread(cloud.proxy, file, mechanism=mechanism)
        tries = await asyncio.gather(*(attempt(proxy, "alice", PASSWORD) for _ in range(10)))
        assert {(tried.reply[:3], tried.messages) for tried in tries} == {(b"+OK", 1)}
        assert len(endpoint.asked) == 1, "asked for each session"
        assert proxy.metrics()['popproxy_backend_access_tokens_total{outcome="ok"}'] == 1
        endpoint.revoke()
        assert await refused(proxy) == (REFUSED, "proxy_credential")
        explained = proxy.command("explain", "alice").stdout
        assert f"AUTH {mechanism.upper()} for alice, with an access token of our own" in explained
        checked = proxy.command("check").stdout
        assert f"offers AUTH {mechanism.upper()}" in checked, checked
        assert f"{endpoint.url}/token gives access tokens" in checked


async def test_access_tokens_of_the_users(site: Site, endpoint: TokenEndpoint) -> None:
    """Each has a refresh token in the vault, which brings the next one; who has none cannot get in."""
    endpoint.rotates = True
    with in_the_cloud(site, endpoint) as cloud, secret_file(endpoint.secret) as file:
        proxy = await asyncio.to_thread(cloud.proxy, file, vault={}, grant="refresh_token")
        text = endpoint.grant("alice")
        run = await asyncio.to_thread(
            proxy.command, "vault", "set", "alice", "--kind", "refresh-token", "--stdin", text=text
        )
        assert run.returncode == 0, run.stderr
        await asyncio.sleep(1.1)  # the running proxy looks at its vault once a second
        assert (await opened(proxy))["popproxy.strategy"] == "xoauth2"
        assert endpoint.grants["alice"] != text
        tried = await attempt(proxy, "bob", PASSWORD)
        assert tried.reply == b"-ERR [SYS/PERM] no way to log in at your mail server"
        assert "the vault has no refresh token of this user" in proxy.command("explain", "bob").stdout
        section = load_file(proxy.file).config.vault
        assert section is not None
        kept = Vault.open(section.file, vault_key(section)).record("alice").refresh_token
        assert kept == Secret(endpoint.grants["alice"]), "the next refresh token is not in the vault"


@pytest.mark.parametrize(
    ("said", "reply", "reason"),
    [
        (Said(503, b"{}"), LATER, "token_unavailable"),
        (Said(200, b"<html>"), LATER, "token_unavailable"),
        (Said(200, b'{"access_token":"x\\r\\nDELE 1","token_type":"Bearer"}'), LATER, "token_unavailable"),
        (Said(delay=5), LATER, "token_unavailable"),
        (Said(200, b'{"access_token":"nobodys","token_type":"Bearer"}'), REFUSED, "proxy_credential"),
        (Said(401, b'{"error":"invalid_client"}'), NO_WAY, "token_refused"),
    ],
    ids=["failing", "no JSON", "a token with commands in it", "slow", "a token that is not good", "refusing"],
)
async def test_endpoint_that_is_out_of_order(
    site: Site, endpoint: TokenEndpoint, said: Said, reply: bytes, reason: str
) -> None:
    endpoint.said = said
    with in_the_cloud(site, endpoint) as cloud, secret_file(endpoint.secret) as file:
        proxy = await asyncio.to_thread(cloud.proxy, file)
        alarm = ALARM if reason == "proxy_credential" else "no access token for the mail server"
        assert await refused(proxy, alarm=alarm) == (reply, reason)
        assert proxy.audit("auth")[-1]["event.outcome"] == "success", "the user has proved himself"
        alarms = proxy.metrics()['popproxy_backend_credentials_refused_total{strategy="xoauth2"}']
        assert alarms == (reason != "token_unavailable")
