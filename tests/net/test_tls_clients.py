"""TLS towards clients: STLS without injection, PROXY and ClientHello in one segment, half and hostile handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from popproxy.wire.clienthello import NO_APPLICATION_PROTOCOL
from tests.peers.certs import Authority, CertificateFiles
from tests.session.rig import Peer, Rig, client_context, running, until

pytestmark = [pytest.mark.long, pytest.mark.every_loop]


def tls(certificate: CertificateFiles, *more: CertificateFiles, **timeouts: str) -> dict[str, Any]:
    """Sections for a listener with STLS and one with TLS from the first octet."""
    return {
        "listener": {"tls": "stls"},
        "more_listeners": [
            {"name": "pop3s", "listen": ["127.0.0.1:0"], "tls": "implicit"},
            {
                "name": "balanced",
                "listen": ["127.0.0.1:0"],
                "tls": "implicit",
                "proxy_protocol": ["127.0.0.1/32"],
            },
        ],
        "tls": {"certificates": [{"cert": str(one.cert), "key": str(one.key)} for one in (certificate, *more)]},
        "timeouts": timeouts,
    }


async def log_in(rig: Rig, client: Peer) -> Peer:
    """USER and PASS up to the open maildrop."""
    await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
    backend = await rig.backend.logged_in()
    await client.expect("+OK send PASS")
    await client.expect("+OK Logged in")
    return backend


async def fetch(client: Peer, backend: Peer) -> None:
    """One command there and back."""
    await client.send("STAT\r\n")
    await backend.expect("STAT")
    await backend.send("+OK 1 2\r\n")
    await client.expect("+OK 1 2")


async def test_everything_works_after_stls(tmp_path: Path, authority: Authority, server_certificate: Any) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.greeted()
        assert await client.command("STLS") == b"+OK begin TLS"
        await client.handshake(client_context(authority.ca))
        assert await client.command("STLS") == b"-ERR STLS is not available"
        assert await client.command("CAPA") == b"+OK capability list follows"
        capa = b""
        while not capa.endswith(b".\r\n"):
            capa += await client.line()
        assert b"STLS" not in capa
        assert b"SASL PLAIN LOGIN" in capa
        backend = await log_in(rig, client)
        await fetch(client, backend)
        client.reset()
        (end,) = await rig.ends("client_lost")
        assert end["tls.version"] == "1.3"


@pytest.mark.parametrize("behind", ["USER mallory\r\n", "\r\n", "Q", "NOOP\r\nNOOP\r\n"])
async def test_plain_text_behind_stls_in_one_segment_is_refused(
    tmp_path: Path, server_certificate: Any, behind: str
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.greeted()
        await client.send("STLS\r\n" + behind)
        await client.expect("-ERR nothing may follow STLS before TLS")
        assert await client.rest() == b""
        await rig.ends("protocol")


async def test_plain_text_in_the_segment_after_stls_never_runs(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.greeted()
        assert await client.command("STLS") == b"+OK begin TLS"
        await client.send("USER mallory\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await client.handshake(client_context(authority.ca))
            pytest.fail("a handshake behind injected plain text")
        (end,) = await rig.ends("tls")
        assert end["pop3.bytes_in"] <= len("STLS\r\nUSER mallory\r\n")


async def test_stls_split_at_every_octet(tmp_path: Path, authority: Authority, server_certificate: Any) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.greeted()
        for octet in b"STLS\r\n":
            await client.send(bytes([octet]))
            await asyncio.sleep(0.001)
        await client.expect("+OK begin TLS")
        context = client_context(authority.ca)
        for octet in client.hello(context):
            await client.sock_send(bytes([octet]))
            await asyncio.sleep(0)
        await client.finish()
        await fetch(client, await log_in(rig, client))


async def test_user_before_stls_is_forgotten(tmp_path: Path, authority: Authority, server_certificate: Any) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.greeted()
        assert (await client.command("USER alice")).startswith(b"+OK")
        assert await client.command("STLS") == b"+OK begin TLS"
        await client.handshake(client_context(authority.ca))
        assert await client.command("PASS canary-pw-alice") == b"-ERR send USER first"


async def test_commands_in_the_segment_of_the_clients_finished_message_are_run(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        for listener in ("pop3s", "pop3"):
            client = await rig.client(listener)
            if listener == "pop3":
                await client.line()
                assert await client.command("STLS") == b"+OK begin TLS"
            await client.sock_send(client.hello(client_context(authority.ca)))
            await client.finish(also=b"NOOP\r\nCAPA\r\n")
            if listener == "pop3s":
                assert (await client.line()).startswith(b"+OK POP3")
            await client.expect("+OK")
            await client.expect("+OK capability list follows")
            while await client.line() != b".\r\n":
                pass


async def test_proxy_header_and_client_hello_in_one_segment(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 995\r\n"
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.client("balanced")
        await client.handshake(client_context(authority.ca), first=header)
        assert (await client.line()).startswith(b"+OK")
        client.close()
        (end,) = await rig.ends("client_lost")
        assert end["source.ip"] == "192.0.2.7"
        # and at every octet
        client = await rig.client("balanced")
        for octet in header + client.hello(client_context(authority.ca)):
            await client.sock_send(bytes([octet]))
            await asyncio.sleep(0)
        await client.finish()
        assert (await client.line()).startswith(b"+OK")


async def test_tls_handshake_has_a_deadline(tmp_path: Path, authority: Authority, server_certificate: Any) -> None:
    async with running(tmp_path, **tls(server_certificate, handshake="300ms")) as rig:
        silent = await rig.client("pop3s")
        half = await rig.client("pop3s")
        hello = half.hello(client_context(authority.ca))
        await half.sock_send(hello[: len(hello) // 2])
        unfinished = await rig.client("pop3s")
        await unfinished.sock_send(unfinished.hello(client_context(authority.ca)))
        after_stls = []
        for _ in range(3):
            client = await rig.greeted()
            assert await client.command("STLS") == b"+OK begin TLS"
            after_stls.append(client)
        hello = after_stls[1].hello(client_context(authority.ca))
        await after_stls[1].sock_send(hello[:20])
        await after_stls[2].sock_send(after_stls[2].hello(client_context(authority.ca)))
        await rig.ends(*["tls"] * 6)
        for client in (silent, half, unfinished, *after_stls):
            client.tls = None
            assert b"too long" not in await client.rest()
        assert rig.metrics.tls_handshakes[("pop3", "failure", "none")] == 3


async def test_deadline_of_a_handshake_is_within_that_of_the_login(tmp_path: Path, server_certificate: Any) -> None:
    async with running(tmp_path, **tls(server_certificate, handshake="20s", login="300ms")) as rig:
        client = await rig.greeted()
        assert await client.command("STLS") == b"+OK begin TLS"
        await client.rest()
        await rig.ends("tls")


async def test_stop_in_the_middle_of_handshakes(tmp_path: Path, authority: Authority, server_certificate: Any) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        await rig.client("pop3s")
        half = await rig.client("pop3s")
        await half.sock_send(half.hello(client_context(authority.ca)))
        balanced = await rig.client("balanced")
        await balanced.send("PROXY TCP4 192.0.2.7 ")
        for _ in range(2):
            client = await rig.greeted()
            assert await client.command("STLS") == b"+OK begin TLS"
        await client.sock_send(client.hello(client_context(authority.ca)))
        await until(lambda: len(rig.service.sessions) == 5, "all to be there")
        await rig.service.stop()
        await rig.ends(*["shutdown"] * 5)


@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_client_that_leaves_in_the_handshake(tmp_path: Path, server_certificate: Any, how: str) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        first = await rig.client("pop3s")
        await asyncio.sleep(0.02)
        getattr(first, how)()
        second = await rig.greeted()
        await second.send("STLS\r\n")
        await second.expect("+OK begin TLS")
        getattr(second, how)()
        third = await rig.greeted()
        await third.send("STLS\r\n")
        getattr(third, how)()
        if how == "half_close":
            await rig.ends(*["tls"] * 3)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_1_is_refused(tmp_path: Path, server_certificate: Any) -> None:
    context = client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.client("pop3s")
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            await client.handshake(context)
        await rig.ends("tls")


@pytest.mark.parametrize("listener", ["pop3", "pop3s"])
async def test_other_application_protocols_are_refused_by_alert_120(
    tmp_path: Path, authority: Authority, server_certificate: Any, listener: str
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        for protocols in (["http/1.1"], ["h2", "http/1.1"], ["smtp"]):
            client = await rig.client(listener)
            if listener == "pop3":
                await client.line()
                assert await client.command("STLS") == b"+OK begin TLS"
            await client.sock_send(client.hello(client_context(authority.ca, alpn=protocols)))
            client.tls = None
            assert await client.rest() == NO_APPLICATION_PROTOCOL
        for good in (["pop3"], ["http/1.1", "pop3"], None):
            client = await rig.client("pop3s")
            await client.handshake(client_context(authority.ca, alpn=good))
            assert client.tls is not None
            assert client.tls.selected_alpn_protocol() == (good and "pop3")


async def test_server_name_chooses_the_certificate(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    other = authority.issue("mail.example.com", "*.pop.example.com", file="example")
    async with running(tmp_path, **tls(server_certificate, other)) as rig:
        for name in ("localhost", "mail.example.com", "a.pop.example.com", "MAIL.example.com"):
            client = await rig.client("pop3s")
            await client.handshake(client_context(authority.ca), name)
        for unknown in (None, "unknown.example"):
            client = await rig.client("pop3s")
            context = client_context(authority.ca)
            context.check_hostname = False
            await client.handshake(context, unknown)
            assert client.tls is not None
            assert client.tls.getpeercert()["subject"] == ((("commonName", "localhost"),),)  # type: ignore[index]


@pytest.mark.parametrize("octets", [b"USER alice\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\xff\xff", b"\x80\x2e\x01"])
async def test_no_tls_on_a_tls_port(tmp_path: Path, server_certificate: Any, octets: bytes) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.client("pop3s")
        await client.send(octets)
        assert b"+OK" not in await client.rest()
        await rig.ends("tls")


async def test_close_notify_and_cut_both_end_the_session_without_quit(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        for cut in (False, True):
            client = await rig.client("pop3s")
            await client.handshake(client_context(authority.ca))
            await client.line()
            backend = await log_in(rig, client)
            if cut:
                client.half_close()
            else:
                assert client.tls is not None
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.tls.unwrap()
                await client.sock_send(client._out.read())
            assert await backend.rest() == b""
            assert backend.ended == "reset"
        await rig.ends("client_lost", "client_lost")


async def test_message_cut_by_the_backend_ends_without_close_notify(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.client("pop3s")
        await client.handshake(client_context(authority.ca))
        await client.line()
        backend = await log_in(rig, client)
        await client.send("RETR 1\r\n")
        await backend.expect("RETR 1")
        await backend.send("+OK\r\nhalf a mess")
        assert await client.take(16) == b"+OK\r\nhalf a mess"
        backend.close()
        assert await client.rest() == b""
        assert client.ended != "tls", "a cut message ended like a whole one"
        await rig.ends("backend_lost")


async def test_last_words_under_tls_end_with_close_notify(
    tmp_path: Path, authority: Authority, server_certificate: Any
) -> None:
    async with running(tmp_path, **tls(server_certificate)) as rig:
        client = await rig.client("pop3s")
        await client.handshake(client_context(authority.ca))
        await client.line()
        await client.send("QUIT\r\n")
        assert await client.rest() == b"+OK Bye\r\n"
        assert client.ended == "tls"
        client = await rig.client("pop3s")
        await client.handshake(client_context(authority.ca))
        await client.line()
        await client.send(b"garbage\r\n" * 30000)
        answers = await client.rest()
        assert answers.count(b"-ERR") == 10
        assert answers.endswith(b"-ERR too many errors\r\n")
        assert client.ended == "tls"
        await rig.ends("quit_before_login", "too_many_errors")
