"""Who may connect: limits, load balancers, and addresses that are believed."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.config.model import Limits
from popproxy.session.admission import LOOKED_AT, Admission
from popproxy.types import Address
from popproxy.wire.proxy_protocol import encode_v1, encode_v2
from tests.session.rig import Transcript, answer_login, running, until

pytestmark = pytest.mark.every_loop

FULL = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
BALANCED: dict[str, Any] = {"listener": {"proxy_protocol": ["127.0.0.1/32"]}}
CLIENT, SERVER = Address("192.0.2.7", 1234), Address("192.0.2.1", 110)
HEADER = encode_v1(CLIENT, SERVER)


async def test_limit_for_one_address(tmp_path: Path) -> None:
    async with running(tmp_path, limits={"connections_per_address": 2}) as rig:
        one, _ = await rig.greeted(), await rig.greeted()
        refused = await rig.client()
        assert await refused.rest() == FULL
        await rig.greeted(source="127.0.0.2")
        one.close()
        await until(lambda: rig.parts.admission.connections == 2, "room")
        await rig.greeted()
        assert rig.metrics.connections_refused[("pop3", "address_limit")] == 1


def test_what_other_workers_have_from_an_address_counts_too() -> None:
    one, other = (Admission(Limits(connections_per_address=16)) for _ in range(2))
    for number in range(40):
        (one, other)[number % 2].enter("192.0.2.7")
        one.enter("192.0.2.8") if number < 1 else None
    for admission, rest in ((one, other), (other, one)):
        assert rest.crowds(2)["192.0.2.7"] == 16, "nobody has told anything yet"
        admission.elsewhere = rest.crowds(2)
    assert one.crowds(2) == {"192.0.2.7": 16}, "one connection does not matter"
    assert other.enter("192.0.2.8") is None
    for admission in (one, other):
        admission.leave("192.0.2.7")
        assert admission.enter("192.0.2.7") == "address_limit"
    other.elsewhere = {}
    assert other.enter("192.0.2.7") is None


async def test_limit_in_total(tmp_path: Path) -> None:
    async with running(tmp_path, limits={"connections": 2, "connections_per_address": 2}) as rig:
        await rig.logged_in()
        client, backend = await rig.logged_in()
        refused = await rig.client(source="127.0.0.2")
        assert await refused.rest() == FULL
        await Transcript(client, backend).play("C: QUIT\nB: QUIT\nR: +OK bye\nS: +OK bye")
        await until(lambda: rig.parts.admission.connections == 1, "room")
        await rig.greeted()
        assert rig.metrics.connections_refused[("pop3", "limit")] == 1


@given(st.lists(st.ip_addresses(), max_size=30))
def test_as_many_leave_as_enter(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    admission = Admission(Limits(connections=20, connections_per_address=2))
    entered = [str(address) for address in addresses if admission.enter(str(address)) is None]
    assert admission.connections == len(entered) <= 20
    for host in entered:
        admission.leave(host)
    assert admission.connections == 0
    assert admission._by_address == {}


def test_ipv6_clients_count_by_network() -> None:
    admission = Admission(Limits(connections_per_address=2))
    assert admission.enter("2001:db8::1") is None
    assert admission.enter("2001:db8::ffff:1") is None
    assert admission.enter("2001:db8::2") == "address_limit"
    assert admission.enter("2001:db8:0:1::2") is None
    assert admission.enter("fe80::1%eth0") is None


# ---- PROXY protocol ----


async def test_header_and_commands_in_one_segment(tmp_path: Path) -> None:
    async with running(tmp_path, **BALANCED) as rig:
        for header in (HEADER, encode_v2(CLIENT, SERVER, crc=True)):
            client = await rig.client()
            await client.send(header + b"USER alice\r\nPASS canary-pw-alice\r\n")
            assert (await client.line()).startswith(b"+OK POP3")
            await rig.backend.logged_in()
            await client.expect("+OK send PASS")
            await client.expect("+OK Logged in")
            client.close()
        ends = await rig.ends("client_lost", "client_lost")
        assert {end["source.ip"] for end in ends} == {"192.0.2.7"}
        assert {end["client.nat.ip"] for end in ends} == {"127.0.0.1"}


async def test_header_split_at_every_octet(tmp_path: Path) -> None:
    octets = HEADER + b"NOOP\r\n"
    async with running(tmp_path, **BALANCED) as rig:
        for at in range(1, len(octets)):
            client = await rig.client()
            await client.send(octets[:at])
            await asyncio.sleep(0.001)
            await client.send(octets[at:])
            assert (await client.line()).startswith(b"+OK POP3")
            await client.expect("+OK")
            client.close()


@pytest.mark.parametrize(
    "octets", [b"USER alice\r\n", b"PROXY TCP4 x\r\n", b"PROXY " + b"x" * 200, b"\r\n\r\n\0\r\nQUIX"]
)
async def test_trusted_peer_without_a_header_is_closed(tmp_path: Path, octets: bytes) -> None:
    async with running(tmp_path, **BALANCED) as rig:
        client = await rig.client()
        await client.send(octets)
        assert await client.rest() == b""
        await rig.ends("proxy_header")


async def test_header_has_a_deadline(tmp_path: Path) -> None:
    async with running(tmp_path, **BALANCED, timeouts={"handshake": "200ms"}) as rig:
        silent = await rig.client()
        half = await rig.client()
        await half.send(HEADER[:10])
        assert await silent.rest() == await half.rest() == b""
        await rig.ends("proxy_header", "proxy_header")


async def test_health_check_and_early_end(tmp_path: Path) -> None:
    async with running(tmp_path, **BALANCED) as rig:
        client = await rig.client()
        await client.send(encode_v2(local=True))
        assert (await client.line()).startswith(b"+OK")
        client.close()
        for how in ("half_close", "reset"):
            client = await rig.client()
            await client.send(HEADER[:20])
            await asyncio.sleep(0.02)
            getattr(client, how)()
        await rig.ends("client_lost", "client_lost", "client_lost")


async def test_header_from_anybody_else_is_garbage(tmp_path: Path) -> None:
    async with running(tmp_path, listener={"proxy_protocol": ["192.0.2.0/24"]}) as rig:
        client = await rig.greeted()
        await client.send(HEADER)
        assert await client.rest() == b"-ERR this is a POP3 server\r\n"
        (end,) = await rig.ends("protocol")
        assert end["source.ip"] == "127.0.0.1"


async def test_limits_count_the_client_behind_the_balancer(tmp_path: Path) -> None:
    async with running(tmp_path, **BALANCED, limits={"connections_per_address": 1}) as rig:
        ready = b"+OK POP3 ready\r\n"
        for host, answer in (("192.0.2.7", ready), ("192.0.2.7", FULL), ("192.0.2.8", ready)):
            client = await rig.client()
            await client.send(encode_v1(Address(host, 1), SERVER))
            assert await client.line() == answer


async def test_cleartext_networks_are_those_of_the_client_behind_the_balancer(tmp_path: Path) -> None:
    listener = {"proxy_protocol": ["127.0.0.1/32"], "cleartext_networks": ["127.0.0.0/8"], "tls": "none"}
    async with running(tmp_path, listener=listener) as rig:
        client = await rig.client()
        await client.send(HEADER)
        await client.line()
        assert (await client.command("USER alice")).startswith(b"-ERR passwords are not taken")


# ---- who has not logged in makes room ----


async def test_who_has_waited_longest_without_a_login_makes_room(tmp_path: Path) -> None:
    async with running(tmp_path, limits={"connections": 4}) as rig:
        inside, behind = await rig.logged_in()
        first, second = await rig.greeted(), await rig.greeted()
        busy = await rig.greeted()
        await busy.send("USER alice\r\nPASS canary-pw-alice\r\n")
        link = await rig.backend.greeted()
        for idle in (first, second):
            client = await rig.greeted(source="127.0.0.2")
            assert await idle.rest() == FULL
            assert idle.ended == "eof"
            client.close()
            await until(lambda: rig.parts.admission.connections == 3, "room")
            await rig.greeted(source="127.0.0.2")
        assert rig.metrics.connections_refused[("pop3", "evicted")] == 2
        await answer_login(link)  # whose login was under way is not sent away
        await busy.expect("+OK send PASS")
        await busy.expect("+OK Logged in")
        await Transcript(inside, behind).play("C: STAT\nB: STAT\nR: +OK 1 2\nS: +OK 1 2")
    assert [record["event.reason"] for record in rig.audit("session_end")].count("refused") == 2
    assert rig.parts.admission.waiting == {}


def test_many_logins_under_way_do_not_hide_who_only_waits() -> None:
    class One:
        def __init__(self, busy: bool) -> None:
            self.busy = busy
            self.ended = False

        def make_room(self) -> None:
            self.ended = True

    admission = Admission(Limits(connections=1000))
    crowd = [One(True) for _ in range(3 * LOOKED_AT)] + [One(False) for _ in range(3)]
    admission.waiting.update(dict.fromkeys(crowd))
    assert [admission.evict() for _ in range(6)] == [False] * 3 + [True] * 3
    assert [one.ended for one in crowd] == [not one.busy for one in crowd]
    assert len(admission.waiting) == 3 * LOOKED_AT


async def test_one_address_makes_no_room_for_itself(tmp_path: Path) -> None:
    async with running(tmp_path, limits={"connections": 2, "connections_per_address": 2}) as rig:
        one, two = await rig.greeted(), await rig.greeted()
        assert await (await rig.client()).rest() == FULL
        assert rig.metrics.connections_refused[("pop3", "address_limit")] == 1
        assert (await one.command("NOOP"), await two.command("NOOP")) == (b"+OK", b"+OK")
