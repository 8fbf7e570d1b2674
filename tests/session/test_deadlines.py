"""What goes on for ever if nobody looks: drips, clients that are gone behind QUIT, handlers that raise."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest

from popproxy.net import relay as relay_module
from popproxy.net.relay import Relay
from tests.session.rig import Peer, Rig, Transcript, running, until, users_file

pytestmark = [pytest.mark.every_loop, pytest.mark.long]

UNKNOWN = b"-ERR [SYS/TEMP] update outcome unknown, the server did not answer QUIT\r\n"


def relay_of(rig: Rig) -> Any:
    (session,) = rig.service.sessions
    return session._relay


async def dripping(rig: Rig, **client: Any) -> tuple[Peer, Peer, Any]:
    """A message that has begun, and was seen to be under way."""
    client_end, backend = await rig.logged_in(**client)
    await Transcript(client_end, backend).play("C: RETR 1\nB: RETR 1\nR: +OK\nS: +OK")
    relay = relay_of(rig)
    await until(lambda: relay._exchange.inside_body, "the message")
    rig.parts.deadlines._sweep()
    assert relay._pace._begun is not None
    return client_end, backend, relay


def as_if_since(relay: Any, seconds: float) -> None:
    """It began so long ago."""
    since, moved = relay._pace._begun
    relay._pace._begun = since - seconds, moved


async def test_a_server_that_drips_is_given_up_and_one_that_is_slow_is_not(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend, relay = await dripping(rig)
        for seconds, octets in ((299, 0), (2, 100), (300, 300 * 40)):  # in its time of grace; then fast enough
            as_if_since(relay, seconds)
            await backend.send(b"x" * octets)
            await client.take(octets)
            rig.parts.deadlines._sweep()
        assert rig.service.sessions
        as_if_since(relay, 300)
        await backend.send(b"xyz")
        await client.take(3)
        rig.parts.deadlines._sweep()
        assert await client.rest() == b""
        await backend.rest()
        assert backend.ended == "reset"
        await rig.ends("backend_stall")


async def test_a_client_that_reads_drop_by_drop_is_left(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        _, backend, relay = await dripping(rig, receive=4096)
        sending = asyncio.create_task(backend.send(b"x" * (8 << 20), seconds=60))
        await until(lambda: relay._client.pending, "back-pressure")
        rig.parts.deadlines._sweep()
        as_if_since(relay, 10**6)
        rig.parts.deadlines._sweep()
        await rig.ends("client_stall")
        await asyncio.gather(sending, return_exceptions=True)


async def test_nothing_under_way_has_no_pace(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend, relay = await dripping(rig)
        await backend.send(".\r\n")
        await client.expect(".")
        rig.parts.deadlines._sweep()
        assert relay._pace._begun is None
        await Transcript(client, backend).play("C: STAT\nB: STAT\nR: +OK 1 2\nS: +OK 1 2")


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
async def test_a_client_that_is_gone_behind_quit_is_waited_for_a_little(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "GONE_CLIENT_WAITS", 0.3)
    async with running(tmp_path, timeouts={"update": "1h"}) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: QUIT\nB: QUIT")
        await client.send("NOOP\r\n")  # behind which nobody reads
        getattr(client, how)()
        await rig.ends("update_unknown")


async def test_a_client_that_stays_behind_quit_waits_as_long_as_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "GONE_CLIENT_WAITS", 0.2)
    async with running(tmp_path, timeouts={"update": "1500ms"}) as rig:
        started = asyncio.get_running_loop().time()
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: QUIT\nB: QUIT")
        dripping = asyncio.create_task(_drip(backend, b"+OK " + b"x" * 5000))
        assert await client.rest() == UNKNOWN
        assert asyncio.get_running_loop().time() - started >= 1.4, "not as long as it may"
        await asyncio.gather(dripping, return_exceptions=True)
        await rig.ends("update_unknown")  # although each octet was an answer of a kind


async def test_a_slow_client_whose_message_was_in_our_systems_buffer_at_first_is_not_thrown_out(tmp_path: Path) -> None:
    """It reads as fast as a modem; what had not left this machine at the first look is not held against it."""
    async with running(tmp_path) as rig:
        client, backend, relay = await dripping(rig, receive=4096)
        await backend.send(b"x" * 60_000)  # the kernel takes it, so that nothing is pending
        await until(lambda: relay.octets[1] > 60_000 and relay._client.unacknowledged > 20_000, "the octets")
        assert not relay._client.pending
        relay._pace.between_replies()
        rig.parts.deadlines._sweep()
        sending = asyncio.create_task(backend.send(b"x" * (8 << 20), seconds=60))
        await until(lambda: relay._client.pending, "more than the kernel takes")
        await client.take(15 * 960)
        as_if_since(relay, 15)
        rig.parts.deadlines._sweep()
        assert rig.service.sessions
        client.reset()
        await rig.ends("client_lost")
        await asyncio.gather(sending, return_exceptions=True)


async def _drip(peer: Peer, octets: bytes) -> None:
    for octet in octets:
        await peer.send(bytes((octet,)))
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("handler", ["deadline_passed", "check_pace"])
async def test_a_handler_that_raises_ends_what_it_was_about_and_is_not_called_again(
    tmp_path: Path, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_relay: Relay) -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as rig:
        rig.expected_errors.append("a deadline's handler failed")
        client, backend = await rig.logged_in()
        relay = relay_of(rig)
        early = await rig.greeted()
        monkeypatch.setattr(Relay, handler, broken)
        if handler == "check_pace":
            rig.parts.deadlines._sweep()
        else:
            relay.deadline = 0.0
        assert await client.rest() == b""
        assert await backend.rest() == b""
        assert rig.log().count("a deadline's handler failed") == 1
        assert (await early.command("NOOP")).startswith(b"+OK")
        assert [record["event.reason"] for record in rig.audit("session_end")] == ["internal"]


async def test_the_time_for_the_login_is_for_all_of_it(tmp_path: Path) -> None:
    """Neither commands nor wrong passwords nor half a SASL exchange give more of it."""
    more = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-right"),
        "authentication": {"failure_delay": "10ms", "tries": 100},
        "limits": {"bad_commands": 1000},
    }
    async with running(tmp_path, timeouts={"login": "1s"}, **more) as rig:
        client = await rig.greeted()
        lines = itertools.cycle(
            (b"NOOP\r\n", b"USER alice\r\nPASS canary-pw-wrong\r\n", b"AUTH PLAIN\r\n*\r\n", b"CA", b"PA\r\n")
        )
        with contextlib.suppress(ConnectionError):
            while not client.ended:
                await client.send(next(lines))
                with contextlib.suppress(TimeoutError):
                    await client.more(0.05)
        assert client.received.endswith(b"-ERR you took too long to log in\r\n")
        (end,) = await rig.ends("login_timeout")
        assert end["event.duration"] >= 10**9
