"""What the status page is fed with: no names without the token, and what is not as it should be, in words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from popproxy.admin.overview import SOON, History, Sample, judge
from popproxy.admin.status import INTERVAL, VIEWERS
from tests.session.rig import Rig, running, until

TOKEN = "a-token-of-32-octets-for-the-test"


@contextlib.asynccontextmanager
async def served(
    tmp_path: Path, token: str = TOKEN, hosts: Sequence[str] = (), **sections: Any
) -> AsyncIterator[tuple[Rig, str]]:
    http: dict[str, Any] = {"listen": "127.0.0.1:0", "hosts": list(hosts)}
    if token:
        (tmp_path / "token").write_text(f"{token}\n")
        (tmp_path / "token").chmod(0o600)
        http["token"] = {"file": str(tmp_path / "token")}
    async with running(tmp_path, http=http, **sections) as rig:
        yield rig, f"http://{rig.service.http_address}"


async def ask(url: str, **headers: str) -> tuple[int, str, Any]:
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


async def test_the_page_says_nothing_of_anybody_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with served(tmp_path) as (rig, url):
        await rig.logged_in()
        await rig.service._page._look()  # type: ignore[union-attr]
        for path, kind in (("/status", "text/html"), ("/status.css", "text/css"), ("/status.js", "text/javascript")):
            status, text, headers = await ask(url + path)
            assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http.token", "")
            assert "alice" not in text
        status, text, _ = await ask(f"{url}/api/status")
        told = json.loads(text)
        assert (told["health"], told["sessions"]["transaction"], told["logins"]["success"]) == ("ok", 1, 1)
        assert told["mechanisms"] == {"USER": {"success": 1, "failure": 0, "error": 0}}
        assert told["listeners"][0] | {"certificate_expires": None} == {
            "name": "pop3", "addresses": ["127.0.0.1:0"], "protocol": "POP3 without TLS", "sessions": 1,
            "connections": 1, "refused": 0, "certificate_expires": None,
        }  # fmt: skip
        assert "alice" not in text
        (client,) = rig.clients
        assert not re.search(rf"\b{client.sock.getsockname()[1]}\b", text)


@pytest.mark.long
async def test_sessions_are_listed_for_the_token_alone_and_each_time_on_record(tmp_path: Path) -> None:
    async with served(tmp_path) as (rig, url):
        await rig.logged_in()
        wrong = ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \xe4"]
        answers = await asyncio.gather(*(ask(f"{url}/api/sessions", Authorization=one) for one in wrong))
        assert {answer[0] for answer in answers} == {401, 429}
        assert all("alice" not in answer[1] for answer in answers)
        status, text, _ = await ask(f"{url}/api/sessions", Authorization=f"Bearer {TOKEN}")
        assert status == 200
        assert [one["user"] for one in json.loads(text)["sessions"]] == ["alice"]
        records = rig.audit("admin")
        assert {record["popproxy.operator_via"] for record in records} == {"http"}
        assert [record["event.outcome"] for record in records][-1] == "success"
        assert {record["event.outcome"] for record in records[:-1]} == {"failure"}
        assert TOKEN not in json.dumps(rig.audit())
        assert TOKEN not in rig.log()


async def test_without_a_token_nobody_gets_the_list(tmp_path: Path) -> None:
    async with served(tmp_path, token="") as (_, url):
        assert (await ask(f"{url}/api/sessions", Authorization="Bearer x"))[0] == 404
        assert json.loads((await ask(f"{url}/api/status"))[1])["sessions_listed"] is False


async def test_names_of_others_are_not_ours(tmp_path: Path) -> None:
    async with served(tmp_path, hosts=["Status.example.com"]) as (_, url):
        port = url.rpartition(":")[2]
        machine = socket.gethostname()
        for host in (
            "127.0.0.1", f"[::1]:{port}", "localhost", f"LOCALHOST.:{port}", "a.localhost:1", "status.example.com",
            f"status.example.com:{port}", "192.0.2.1:80", machine, f"{machine}:{port}",
        ):  # fmt: skip
            assert (await ask(f"{url}/api/status", Host=host))[0] == 200, host
        for host in (
            "evil.example", f"evil.example:{port}", "status.example.com.evil.example", "localhost.evil.example", "",
            "127.0.0.1.evil.example", "[evil.example]", "notlocalhost", "127.0.0.1@evil.example",
        ):  # fmt: skip
            for path in ("/status", "/status.js", "/api/status", "/api/events", "/api/sessions"):
                status, text, _ = await ask(url + path, Host=host, Authorization=f"Bearer {TOKEN}")
                assert (status, "http.hosts" in text) == (421, True), (host, path)
            assert (await ask(f"{url}/metrics", Host=host))[0] == 200
            assert (await ask(f"{url}/livez", Host=host))[0] == 200


async def test_pages_that_are_open_or_read_nothing_keep_nobody_out(tmp_path: Path) -> None:
    async with served(tmp_path) as (rig, url):
        loop = asyncio.get_running_loop()
        held: list[socket.socket] = []

        async def connect() -> socket.socket:
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].bind(("127.0.0.9", 0))
            await loop.sock_connect(held[-1], ("127.0.0.1", int(url.rpartition(":")[2])))
            return held[-1]

        page = rig.service._page
        assert page is not None
        for _ in range(VIEWERS + 3):
            await loop.sock_sendall(await connect(), b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: len(page._viewers) == VIEWERS, "all places are taken")
        async with aiohttp.ClientSession() as client, client.get(f"{url}/api/events") as got:
            assert (await got.content.readline()).startswith(b"data: {")
        for _ in range(300):
            await connect()
        assert (await ask(f"{url}/api/status"))[0] == 200
        for sock in held:
            sock.close()


async def test_workers_are_asked_while_somebody_looks_and_only_then(tmp_path: Path) -> None:
    async with served(tmp_path) as (rig, url):
        page = rig.service._page
        assert page is not None
        looks = 0
        look = page._look

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await look()

        page._look = counted  # type: ignore[method-assign]
        await ask(f"{url}/api/status")
        assert looks == 0  # the one of the start is fresh
        page._looked -= INTERVAL  # it has got old
        await asyncio.gather(*(ask(f"{url}/api/status") for _ in range(20)))
        assert looks == 1
        page._looked -= INTERVAL
        async with aiohttp.ClientSession() as client, client.get(f"{url}/api/events") as got:
            assert (await got.content.readline()).startswith(b"data: {")
            assert looks == 2


async def test_events_follow_what_goes_on_and_end_with_the_service(tmp_path: Path) -> None:
    async with (
        served(tmp_path) as (rig, url),
        aiohttp.ClientSession() as client,
        client.get(f"{url}/api/events") as got,
    ):
        assert got.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        line = await got.content.readline()
        assert json.loads(line.removeprefix(b"data: "))["sessions"]["transaction"] == 0
        await got.content.readline()
        await rig.logged_in()
        await rig.service._page._look()  # type: ignore[union-attr]
        line = await got.content.readline()
        assert json.loads(line.removeprefix(b"data: "))["sessions"]["transaction"] == 1
        await rig.service._page.stop()  # type: ignore[union-attr]
        assert await got.content.read() == b"\n"


LOOK: dict[str, Any] = {
    "at": 1000.0,
    "backends": [{"pool": "a", "server": "a1", "state": "up"}, {"pool": "a", "server": "a2", "state": "up"}],
    "waiting": {"a": 0},
    "listeners": [{"name": "pop3s", "certificate_expires": 1000 + SOON}, {"name": "pop3", "certificate_expires": None}],
    "audit": {"healthy": True, "dropped": 0},
}
A1_DOWN = [{"pool": "a", "server": "a1", "state": "down"}, {"pool": "a", "server": "a2", "state": "up"}]
BOTH_DOWN = [{"pool": "a", "server": "a1", "state": "down"}, {"pool": "a", "server": "a2", "state": "drain"}]


@pytest.mark.parametrize(
    ("change", "not_ready", "health", "reason"),
    [
        ({}, [], "ok", None),
        ({"backends": A1_DOWN}, [], "warn", "pool a: a1 (down)"),
        ({"backends": BOTH_DOWN}, [], "bad", "no server of pool a is up: a1 (down), a2 (drain)"),
        ({"waiting": {"a": 3}}, [], "warn", "3 logins wait for a place in pool a"),
        ({"audit": {"healthy": False, "dropped": 0}}, [], "bad", "the audit log cannot be written"),
        ({"audit": {"healthy": True, "dropped": 2}}, [], "warn", "2 audit records are lost"),
        ({"at": 1000 + SOON - 86400 * 3}, [], "warn", "the certificate of listener pop3s expires in 3 days"),
        ({"at": 1001 + SOON}, [], "bad", "the certificate of listener pop3s has expired"),
        ({"backends": A1_DOWN}, ["draining"], "bad", "draining"),
    ],
)
def test_what_is_wrong_is_said_the_worst_first(
    change: dict[str, Any], not_ready: list[str], health: str, reason: str | None
) -> None:
    found, _, reasons = judge(LOOK | change, not_ready)
    assert (found, reasons[0] if reasons else None) == (health, reason)


def test_history_has_rates_and_forgets() -> None:
    history = History(10)
    for second in range(0, 4000, 5):
        history.take(Sample(second, second, second * 2, 0, 0))
    lines = history.lines()
    assert len(lines["sessions"]) == 151
    assert lines["sessions"][-1] == 3990
    assert set(lines["logins"]) == {2.0}
    sparse = History(10)
    for second in range(0, 301, 30):
        sparse.take(Sample(second, second, second * 2, 0, 0))
    assert sparse.lines()["sessions"] == list(range(0, 301, 10))
    assert set(sparse.lines()["logins"]) == {2.0}
    sparse.take(Sample(100, 7, 0, 0, 0))
    assert sparse.lines()["sessions"] == [7], "the clock was put back"
    assert History(10).lines()["sessions"] == []
