"""SOCKS proxies that lie, die or say nothing: no octet of a credential, and an honest answer in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backend.test_dialing import LATER, log_in, unused
from tests.session.rig import Backend, answer_login, running

HELLO = b"\x05\x01\x00"
NO_LOGIN = b"\x05\x00"
DONE = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x6e"


async def test_the_name_goes_to_the_proxy_and_the_greeting_may_come_with_its_answer(tmp_path: Path) -> None:
    socks = Backend()
    pool = {"servers": ["oldmail.internal"], "socks": {"server": socks.address}}
    async with running(tmp_path, backend=socks, pool=pool) as rig:
        client, answer = await log_in(rig)
        peer = await socks.accept()
        assert await peer.take(3) == HELLO
        await peer.send(NO_LOGIN)
        asked = b"\x05\x01\x00\x03\x10oldmail.internal\x00\x6e"
        assert await peer.take(len(asked)) == asked
        await peer.send(DONE + b"+OK ready\r\n")
        await answer_login(peer)
        assert await answer == b"+OK Logged in"
        await client.send("NOOP\r\n")
        await peer.expect("NOOP")
        await peer.send("+OK\r\n")
        await client.expect("+OK")


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ([b"\x04\x00"], "socks"),
        ([b"\x05\xff"], "socks"),
        ([b"\x05\x02"], "socks"),  # wants a login, and there is none
        ([b"+OK ready\r\n"], "socks"),
        ([b""], "socks"),
        ([NO_LOGIN, b"\x05\x01\x00"], "socks"),
        ([NO_LOGIN, b"\x05\x02\x00"], "rejected"),
        ([NO_LOGIN, b"\x05\x04\x00"], "unreachable"),
        ([NO_LOGIN, b"\x05\x05\x00"], "refused"),
        ([NO_LOGIN, b"\x05\x77\x00"], "socks"),
        ([NO_LOGIN, b"\x05\x00\x00\x09"], "socks"),
        ([NO_LOGIN, DONE[:6], b""], "socks"),
        ([NO_LOGIN, None], "timeout"),
    ],
)
async def test_proxy_that_does_not_do_it(tmp_path: Path, says: list[bytes | None], reason: str) -> None:
    socks = Backend()
    server = unused()
    pool = {"servers": [server], "socks": {"server": socks.address}}
    async with running(
        tmp_path, backend=socks, pool=pool, timeouts={"connect": "300ms" if None in says else "10s"}
    ) as rig:
        _, answer = await log_in(rig)
        peer = await socks.accept()
        for octets in says:
            if octets == b"":
                peer.half_close()
                break
            await peer.more()
            if octets is not None:
                await peer.send(octets)
        assert await answer == LATER
        heard = bytes(peer.received) + await peer.rest()
        assert b"alice" not in heard
        assert b"canary" not in heard
        assert rig.metrics.backend_errors[(server, "connect", reason)] == 1


async def test_nobody_is_where_the_proxy_should_be(tmp_path: Path) -> None:
    async with running(tmp_path, pool={"socks": {"server": unused()}}) as rig:
        _, answer = await log_in(rig)
        assert await answer == LATER
        assert rig.metrics.backend_errors[(rig.backend.address, "connect", "socks")] == 1
