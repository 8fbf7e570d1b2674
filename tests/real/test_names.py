"""Servers by their names, and by SRV records, of a real name server: what it changes takes effect without a restart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.backend.balancer import State
from popproxy.errors import ConnectFailed
from popproxy.net.dns import Dns, NoSuchName
from popproxy.types import Address
from tests.cli.helpers import popproxy
from tests.peers.nsd import NameServer, name_server
from tests.peers.scripted import ScriptedBackend
from tests.session.rig import Backend, Rig, log_in, running, until

pytestmark = pytest.mark.real

WELCOME = b"+OK Logged in"
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"
HOST = "pop IN A 127.0.0.1"


def srv(server: ScriptedBackend, priority: int = 0, weight: int = 0) -> str:
    return f"_pop3._tcp IN SRV {priority} {weight} {server.port} pop.example.test."


@contextlib.asynccontextmanager
async def site(tmp_path: Path, names: NameServer, **pool: Any) -> AsyncIterator[Rig]:
    pool = {"servers": [], "srv": "example.test", "shared": True, **pool}
    sections: dict[str, Any] = {"names": {"servers": [names.address]}, "timeouts": {"connect": "1s"}}
    async with running(tmp_path, backend=Backend(), pool=pool, **sections) as rig:
        yield rig


def labels(rig: Rig) -> set[str]:
    return {backend.label for backend in rig.parts.pools["main"].backends}


def logins(server: ScriptedBackend) -> int:
    return sum(session.logged_in for session in server.sessions)


async def test_priorities_and_weights(tmp_path: Path) -> None:
    async with ScriptedBackend() as often, ScriptedBackend() as seldom, ScriptedBackend() as last:
        records = srv(often, 10, 9), srv(seldom, 10, 1), srv(last, 20, 5), HOST
        with name_server(*records) as names:
            async with site(tmp_path, names, balance={"failures": 1}) as rig:
                assert [await log_in(rig) for _ in range(60)] == [WELCOME] * 60
                assert logins(often) > logins(seldom)
                assert logins(last) == 0, "its priority is lower"
                await often.__aexit__()
                await seldom.__aexit__()
                assert [await log_in(rig) for _ in range(3)] == [WELCOME] * 3
                assert logins(last) == 3


async def test_servers_come_and_go_with_the_records(tmp_path: Path) -> None:
    async with ScriptedBackend([b"x"]) as first, ScriptedBackend() as second:
        with name_server(srv(first), HOST) as names:
            async with site(tmp_path, names, check={"every": "50ms"}) as rig:
                client = await rig.greeted()
                await client.command("USER alice")
                assert await client.command("PASS canary-pw-right") == WELCOME
                kept = rig.parts.pools["main"].backends[0]
                names.change(srv(first), srv(second), HOST)
                await until(lambda: len(labels(rig)) == 2, "the second server")
                assert kept in rig.parts.pools["main"].backends, "what is known of a server is kept"
                names.change(srv(second), HOST)
                await until(lambda: labels(rig) == {f"pop.example.test:{second.port}"}, "the first one to go")
                assert await log_in(rig) == WELCOME
                assert logins(second) == 1
                assert (await client.command("STAT")).startswith(b"+OK 1 "), "open sessions go on"
                await second.__aexit__()  # refuses connections from now on
                only = rig.parts.pools["main"].backends[0].member
                await until(lambda: only.state is State.DOWN, "checks to find the new one down")
                client.close()
                rig.parts.backends.close()
                await until(lambda: not rig.parts.deadlines._members, "the end of the last check")
                assert f'backend="pop.example.test:{second.port}"' in rig.metrics.render("")[0].decode()


async def test_a_service_that_is_said_not_to_exist(tmp_path: Path) -> None:
    async with ScriptedBackend() as only:
        with name_server("_pop3._tcp IN SRV 0 0 0 .", HOST) as names:
            async with site(tmp_path, names) as rig:
                assert await log_in(rig) == LATER
                names.change(srv(only), HOST)
                await until(lambda: labels(rig), "the server")
                assert await log_in(rig) == WELCOME
                names.change("_pop3._tcp IN SRV 0 0 0 .", HOST)
                await until(lambda: not labels(rig), "the end of the service")
                assert await log_in(rig) == LATER
                assert logins(only) == 1


async def test_known_servers_serve_while_the_name_server_does_not(tmp_path: Path) -> None:
    async with ScriptedBackend() as only:
        with name_server(srv(only), HOST) as names:
            async with site(tmp_path, names) as rig:
                assert await log_in(rig) == WELCOME
                names.silence()
                at = Address("pop.example.test", only.port)
                await until(lambda: rig.parts.resolver.known(at) is None, "the address to be out of date")
                assert [await log_in(rig) for _ in range(3)] == [WELCOME] * 3
                names.stop()
                assert await log_in(rig) == WELCOME
            async with site(tmp_path, names) as rig:
                assert await log_in(rig) == LATER, "nothing is known at the start, and that is our trouble"


async def test_several_records_for_maildrops_that_are_not_shared(tmp_path: Path) -> None:
    async with ScriptedBackend() as first, ScriptedBackend() as second:
        with name_server(srv(first), HOST) as names:
            async with site(tmp_path, names, shared=False) as rig:
                assert await log_in(rig) == WELCOME
                names.change(srv(first), srv(second), HOST)
                await until(lambda: not labels(rig), "the records to be refused")
                assert await log_in(rig) == LATER
                assert not second.sessions


async def test_addresses_are_asked_for_when_their_time_to_live_is_over(tmp_path: Path) -> None:
    async with ScriptedBackend() as here:
        with name_server("short IN A 127.0.0.2", "long 300 IN A 127.0.0.2", "alias 300 IN CNAME short") as names:
            pool = {"srv": None, "servers": [f"{name}.example.test:{here.port}" for name in ("short", "long", "alias")]}
            async with site(tmp_path, names, **pool) as rig:
                assert await log_in(rig) == LATER
                names.change("short IN A 127.0.0.1", "long 300 IN A 127.0.0.1", "alias 300 IN CNAME short")
                found = rig.parts.resolver.known
                by_name = {name: Address(f"{name}.example.test", here.port) for name in ("short", "long", "alias")}
                await until(lambda: found(by_name["short"]) is None, "the short time to be over")
                assert await log_in(rig) == WELCOME
                assert found(by_name["long"]) == [Address("127.0.0.2", here.port)], "its time is not over"
                await until(lambda: found(by_name["alias"]) is None, "an alias lives no longer than what it stands for")


async def test_answers_that_make_no_sense(tmp_path: Path) -> None:
    odd = ("_odd._tcp IN SRV 0 0 110 bad\\007name", "_odd._tcp IN SRV 0 0 0 pop", "_odd._tcp IN SRV 1 2 110 POP")
    with name_server(*odd, HOST, "_bad._tcp IN SRV 0 0 110 a\\032b", "v6 IN AAAA ::1", "v6 IN A 127.0.0.1") as names:
        asked = Dns([Address("127.0.0.1", names.port)], 2.0)
        services, ttl = await asked.services("_odd._tcp.example.test")
        assert [(one.priority, one.weight, str(one.target)) for one in services] == [(1, 2, "pop.example.test:110")]
        assert 0 <= ttl <= 1
        for nothing in ("_bad._tcp.example.test", "_none._tcp.example.test", "pop.example.test"):
            with pytest.raises(NoSuchName):
                await asked.services(nothing)
        assert set((await asked.addresses("v6.example.test"))[0]) == {"::1", "127.0.0.1"}
        with pytest.raises(NoSuchName):
            await asked.addresses("nobody.example.test")
        names.silence()
        with pytest.raises(ConnectFailed) as silent:
            await asked.addresses("pop.example.test")
        assert not isinstance(silent.value, NoSuchName)


async def test_check_asks_the_name_server_and_the_servers(tmp_path: Path) -> None:
    async with ScriptedBackend(capa=("TOP", "UIDL", "PIPELINING")) as only:
        with name_server(srv(only), HOST) as names:
            path = tmp_path / "popproxy.yaml"
            path.write_text(
                f"listeners: [{{name: pop3, listen: ['127.0.0.1:0'], tls: none, cleartext_networks: [127.0.0.0/8]}}]\n"
                f"pools: {{main: {{srv: example.test, tls: none, allow_cleartext: true}}}}\n"
                f"names: {{servers: ['{names.address}']}}\ncontrol: {{socket: null}}\nhttp: {{listen: null}}\n"
            )
            said = (await asyncio.to_thread(popproxy, "check", "-c", str(path))).stdout.decode()
            assert "_pop3._tcp.example.test names 1 server, for 1 s" in said
            assert f"pop.example.test:{only.port} answers without TLS" in said
            names.change("_pop3._tcp IN SRV 0 0 0 .")
            said = (await asyncio.to_thread(popproxy, "check", "-c", str(path))).stdout.decode()
            assert "_pop3._tcp.example.test says that there is no such service" in said
