"""The ports that mail clients know: bound as root, served as somebody else."""

from __future__ import annotations

import pwd
import re
from pathlib import Path

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clients import Account, Poplib
from tests.peers.dovecot import Dovecot
from tests.peers.messages import SAMPLES, wire
from tests.peers.process import accepts
from tests.peers.proxy import Proxy, StartProxy, settings


def _identity(proxy: Proxy) -> dict[str, list[int]]:
    """Real, effective, saved and file system ids, and the groups, as the kernel has them."""
    status = Path(f"/proc/{proxy.worker}/status").read_text()
    return {
        name: [int(word) for word in ids.split()] for name, ids in re.findall(r"^(Uid|Gid|Groups):(.*)$", status, re.M)
    }


def test_ports_110_and_995_are_bound_and_then_served_without_root(
    start_proxy: StartProxy, dovecot_server: Dovecot, authority: Authority, server_certificate: CertificateFiles
) -> None:
    assert not accepts(110), "somebody listens on port 110 already; stop that server for this test"
    assert not accepts(995), "somebody listens on port 995 already; stop that server for this test"
    dovecot_server.deliver("bob", SAMPLES)
    configuration = settings(f"127.0.0.1:{dovecot_server.port}", server_certificate, process={"user": "nobody"})
    configuration["listeners"][0]["listen"] = ["127.0.0.1:110"]
    configuration["listeners"][1]["listen"] = ["127.0.0.1:995"]

    proxy = start_proxy(configuration)

    nobody = pwd.getpwnam("nobody")
    identity = _identity(proxy)
    assert identity["Uid"] == [nobody.pw_uid] * 4
    assert identity["Gid"] == [nobody.pw_gid] * 4
    assert 0 not in identity["Groups"]
    for account in (
        Account(110, "bob", dovecot_server.users["bob"], authority.ca, "stls"),
        Account(995, "bob", dovecot_server.users["bob"], authority.ca, "tls"),
    ):
        assert Poplib().fetch(account, proxy.directory) == [wire(message) for message in SAMPLES]


def test_privileges_cannot_be_had_back(start_proxy: StartProxy, dovecot_server: Dovecot) -> None:
    proxy = start_proxy(settings(f"127.0.0.1:{dovecot_server.port}"))

    status = Path(f"/proc/{proxy.worker}/status").read_text()

    capabilities = dict(re.findall(r"^(Cap(?:Prm|Eff)):\t([0-9a-f]+)$", status, re.M))
    assert capabilities == {"CapPrm": "0" * 16, "CapEff": "0" * 16}


def test_started_by_root_without_another_user_it_warns(start_proxy: StartProxy, dovecot_server: Dovecot) -> None:
    proxy = start_proxy(settings(f"127.0.0.1:{dovecot_server.port}", process={}))

    assert _identity(proxy)["Uid"] == [0] * 4
    assert "process.user" in proxy.log()
