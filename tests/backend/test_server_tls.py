"""TLS towards servers: old ones in quarantine, pinned keys, and everything that a false server can make of STLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest

from popproxy.net.certificate import key_pin
from tests.backend.test_dialing import LATER, log_in, server_context
from tests.peers.certs import Authority, CertificateFiles
from tests.session.rig import Backend, Peer, answer_login, running

OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]


def old_context(certificate: CertificateFiles, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A server that speaks only this version, with its ciphers: CBC, MD5 and SHA-1."""
    context = server_context(certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


async def over_tls(backend: Backend, context: ssl.SSLContext) -> Peer:
    """The next connection, in TLS and greeted; AssertionError if the proxy does not want it."""
    peer = await backend.accept()
    await peer.handshake(context, server=True)
    await peer.send("+OK ready\r\n")
    return peer


@pytest.mark.parametrize("version", OLD)
async def test_old_server_is_reached_in_quarantine_and_all_others_keep_their_standard(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles, version: ssl.TLSVersion
) -> None:
    old, other = Backend(), Backend()
    tls = {"tls": "implicit", "ca": str(authority.ca), "allow_cleartext": False}
    async with running(
        tmp_path, backend=old, pool={**tls, "legacy_tls": True},
        more_pools={"other": {"servers": [other.address], **tls, "allow_cleartext": False}},
        routing={"rules": [{"user": "bob", "pool": "other"}], "default": "main"},
    ) as rig:  # fmt: skip
        rig.expected_errors.append("TLS to a backend failed")
        _, answer = await log_in(rig)
        peer = await over_tls(old, old_context(server_certificate, version))
        assert peer.tls is not None
        assert peer.tls.version() == {ssl.TLSVersion.TLSv1: "TLSv1", ssl.TLSVersion.TLSv1_1: "TLSv1.1"}[version]
        await answer_login(peer)
        assert await answer == b"+OK Logged in"
        bob = await rig.greeted()
        await bob.command("USER bob")
        trying = asyncio.create_task(bob.command("PASS canary-pw-bob"))
        with pytest.raises(ssl.SSLError, match=r"(?i)unsupported protocol|alert|version"):
            await over_tls(other, old_context(server_certificate, version))
        other.connections[0].close()
        assert await trying == LATER
    other.close()


@pytest.mark.parametrize("how", ["stls", "implicit"])
@pytest.mark.parametrize("right", [True, False])
async def test_server_must_have_the_pinned_key(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles, how: str, right: bool
) -> None:
    shown = authority.issue("mail.elsewhere.example", file="pinned")
    pinned = shown if right else server_certificate
    pin = key_pin(ssl.PEM_cert_to_DER_cert(pinned.cert.read_text()))
    pool: dict[str, Any] = {"tls": how, "verify": False, "pin": [pin], "allow_cleartext": False}
    async with running(tmp_path, pool=pool) as rig:
        rig.expected_errors.append("not one of pin")
        _, answer = await log_in(rig)
        peer = await rig.backend.accept()
        if how == "stls":
            await peer.send("+OK ready\r\n")
            await peer.expect("STLS")
            await peer.send("+OK\r\n")
        with contextlib.nullcontext() if right else contextlib.suppress(ConnectionError):
            await peer.handshake(server_context(shown), server=True)
        if how == "implicit" and right:
            await peer.send("+OK ready\r\n")
        if right:
            await answer_login(peer)
            assert await answer == b"+OK Logged in"
        else:
            assert await answer == LATER
            with contextlib.suppress(ssl.SSLError):
                assert await peer.rest() == b""
            assert rig.metrics.backend_errors[(rig.backend.address, "tls", "tls")] == 1


LIES: dict[str, list[str]] = {
    "no STLS: refused as unknown": ["+OK ready\r\n", "-ERR unknown command\r\n"],
    "no STLS: refused, try again in the clear": ["+OK ready\r\n", "-ERR [SYS/TEMP] TLS not available\r\n"],
    "no STLS: refused with a shout": ["+OK ready\r\n", "-ERR please log in without\r\n+OK\r\n"],
    "no STLS: neither yes nor no": ["+OK ready\r\n", "* BAD\r\n"],
    "early: two greetings": ["+OK ready\r\n+OK logged in\r\n"],
    "early: greeting and the answer to STLS": ["+OK ready\r\n+OK begin TLS\r\n"],
    "early: no greeting but a maildrop": ["+OK 2 messages\r\n.\r\n"],
    "injected: a reply in the same segment": ["+OK ready\r\n", "+OK begin\r\n+OK injected\r\n"],
    "injected: a reply to CAPA": ["+OK ready\r\n", "+OK begin\r\n+OK\r\nSASL PLAIN\r\n.\r\n"],
    "injected: half a line": ["+OK ready\r\n", "+OK begin\r\n+O"],
    "injected: a reply in the next segment": ["+OK ready\r\n", "+OK begin\r\n", "+OK injected\r\n"],
    "no TLS: the dialogue goes on in the clear": ["+OK ready\r\n", "+OK begin\r\n", "+OK\r\n", "+OK\r\n"],
    "a challenge instead of an answer": ["+OK ready\r\n", "+ \r\n"],
}
"""What the server says, each after what the proxy has said before: stripping, early data, response injection. The cases
of a public catalogue are in test_fake_mail_server.py."""


@pytest.mark.parametrize("lines", LIES.values(), ids=LIES.keys())
async def test_false_server_gets_no_octet_of_a_credential(
    tmp_path: Path, authority: Authority, lines: list[str]
) -> None:
    pool = {"tls": "stls", "ca": str(authority.ca), "allow_cleartext": False}
    timeouts = {"handshake": "300ms", "connect": "300ms", "backend_login": "500ms"}
    async with running(tmp_path, pool=pool, timeouts=timeouts) as rig:
        rig.expected_errors.append("TLS to a backend failed")
        _, answer = await log_in(rig)
        peer = await rig.backend.accept()
        said = bytearray()
        for line in lines:
            await peer.send(line)
            if not await peer.more():
                break
        assert await answer == LATER
        said += await peer.rest()
        command, _, rest = bytes(said).partition(b"STLS\r\n")
        assert command == b""
        assert rest[:1] in (b"", b"\x16", b"\x15"), "something else than TLS records"
        for secret in (b"alice", b"canary", b"USER", b"PASS", b"AUTH", b"APOP"):
            assert secret not in said
