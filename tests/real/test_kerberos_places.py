"""A ticket says who somebody is; where his mail is says the directory: mailHost of a real slapd, which then dies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.kdc import Realm, realm
from tests.peers.kpop_client import KpopClient
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, proxies
from tests.peers.slapd import PEOPLE, SERVICE, Person, Slapd, slapd
from tests.real.kerberos_rig import SERVICE as POP
from tests.real.kerberos_rig import configuration, master_dovecot


@dataclass(frozen=True)
class Site:
    """Everybody's mail is on the first server, but alice's and bob's entries name the second."""

    realm: Realm
    directory: Slapd
    second: int
    proxy: Proxy
    tickets: dict[str, Path]

    def log_in(self, user: str) -> bytes:
        """The reply to PASS, by KPOP with a ticket."""
        with KpopClient(self.proxy.port("kpop")) as client:
            client.authenticate(self.realm.config, self.tickets[user], f"{POP}@{self.realm.name}")
            client.line()
            client.command(f"USER {user}")
            return client.command("PASS x")


@pytest.fixture(scope="module")
def site(authority: Authority, server_certificate: CertificateFiles) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(realm())
        tickets: dict[str, Path] = {}
        for user in ("alice", "bob"):
            it.user(user)
            tickets[user] = it.kinit(user)
        it.service(POP)
        first, password = stack.enter_context(master_dovecot())
        second, other_password = stack.enter_context(master_dovecot())
        people = [Person(user, f"{user}@example.com", f"mailHost: 127.0.0.1:{second.port}\n") for user in tickets]
        server = stack.enter_context(slapd(authority, server_certificate, people))
        secrets = stack.enter_context(public_directory("places"))
        start = stack.enter_context(proxies())
        complete = configuration(it, first, server_certificate, secrets, password=password)
        other = secrets / "other.password"
        other.write_text(other_password)
        other.chmod(0o600)
        master = {**complete["pools"]["main"]["master"], "password": {"file": str(other)}}
        complete["pools"]["second"] = {
            **complete["pools"]["main"], "servers": [f"127.0.0.1:{second.port}"], "master": master,
        }  # fmt: skip
        section = {
            "servers": [f"127.0.0.1:{server.port}"], "ca": str(authority.ca), "base": PEOPLE, "filter": "(uid={local})",
            "account": {"dn": SERVICE, "password": {"file": str(server.account_file)}},
            "attributes": {"server": "mailHost"},
        }  # fmt: skip
        complete["directories"] = {"corp": {"ldap": section, "deadline": "10s"}}
        complete["routing"] = {"default": "main", "directories": ["corp"], "cache": "0s"}
        yield Site(it, server, second.port, start(complete, env=it.environment), tickets)


def test_who_comes_by_ticket_is_taken_where_the_entry_says_and_still_is_while_the_directory_is_down(site: Site) -> None:
    assert site.log_in("alice").startswith(b"+OK")
    assert site.proxy.audit("login")[-1]["destination.port"] == site.second
    site.directory.stop()
    try:
        assert site.log_in("alice").startswith(b"+OK")
        assert site.proxy.audit("login")[-1]["destination.port"] == site.second
        assert site.log_in("bob").startswith(b"-ERR [SYS/TEMP]")  # never the empty maildrop on the first server
    finally:
        site.directory.start()
    assert site.log_in("bob").startswith(b"+OK")
    assert site.proxy.audit("login")[-1]["destination.port"] == site.second
