"""A real Dovecot that knows nothing newer than TLS 1.0: reached in its quarantine, and nothing else gets any older."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.process import public_directory, require
from tests.peers.proxy import StartProxy, settings
from tests.real.test_introductions import session

_OPENSSL = """\
openssl_conf = it
[it]
ssl_conf = ssl
[ssl]
system_default = all
[all]
MinProtocol = TLSv1
MaxProtocol = TLSv1
CipherString = ALL:@SECLEVEL=0
"""
VERSIONS = ("tls1", "tls1_1", "tls1_2", "tls1_3")


def speaks(port: int, version: str, configuration: Path) -> bool:
    """Will it do a handshake of this version with a client that takes anything?"""
    asked = subprocess.run(
        [require("openssl"), "s_client", f"-{version}", "-connect", f"127.0.0.1:{port}", "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={"OPENSSL_CONF": str(configuration), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return "Cipher is (NONE)" not in asked.stdout and "New, " in asked.stdout


def test_dovecot_of_tls_1_0_is_reached_while_all_others_keep_their_standard(
    start_proxy: StartProxy, dovecot_server: Dovecot, authority: Authority, server_certificate: CertificateFiles
) -> None:
    with public_directory("openssl") as directory:
        old, lax = directory / "old.cnf", directory / "lax.cnf"
        old.write_text(_OPENSSL)
        lax.write_text(_OPENSSL.replace("MaxProtocol = TLSv1\n", ""))
        extra = f"import_environment = OPENSSL_CONF={old}\nssl_min_protocol = TLSv1\nssl_cipher_list = ALL:@SECLEVEL=0"
        with dovecot(server_certificate, extra=extra, users=("alice", "bob", "carol")) as server:
            assert [version for version in VERSIONS if speaks(server.tls_port, version, lax)] == ["tls1"]
            link: dict[str, Any] = {"ca": str(authority.ca), "allow_cleartext": False, "server_name": "localhost"}
            configuration = settings(
                f"127.0.0.1:{server.port}", server_certificate, pool={**link, "tls": "stls", "legacy_tls": True}
            )
            configuration["pools"] |= {
                "strict": {**link, "servers": [f"127.0.0.1:{server.tls_port}"], "tls": "implicit"},
                "new": {**link, "servers": [f"127.0.0.1:{dovecot_server.tls_port}"], "tls": "implicit"},
            }
            configuration["routing"] = {
                "rules": [{"user": "carol", "pool": "strict"}, {"user": "bob", "pool": "new"}], "default": "main",
            }  # fmt: skip
            proxy = start_proxy(configuration)
            session(proxy.port(), "alice", server.users["alice"])
            told = server.told("Login: user=<alice>")
            assert ", TLS, " in told
            session(proxy.port(), "bob", dovecot_server.users["bob"])
            with pytest.raises(AssertionError, match="SYS/TEMP"):
                session(proxy.port(), "carol", server.users["carol"])
            assert "user=<carol>" not in server.log()
            assert [version for version in VERSIONS if speaks(proxy.port("pop3s"), version, lax)] == [
                "tls1_2",
                "tls1_3",
            ]
            checked = proxy.command("check")
            assert f"127.0.0.1:{server.port} answers with TLSv1, its certificate is good" in checked.stdout
            assert f"127.0.0.1:{server.tls_port} closed the connection during the TLS handshake" in checked.stdout
            assert f"127.0.0.1:{dovecot_server.tls_port} answers with TLSv1.3" in checked.stdout
