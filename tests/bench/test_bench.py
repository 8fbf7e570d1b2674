"""The benchmark itself: it measures real proxies, and it notices what goes wrong. Nothing here says how fast."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.bench.tools import tools
from tests.peers.process import REPOSITORY, accepts, free_port, wait_until

pytestmark = pytest.mark.real

Change = Callable[[bytes], bytes]


@pytest.fixture
def backend() -> Iterator[int]:
    """The port of the benchmark's own POP3 server."""
    port = free_port()
    with subprocess.Popen([tools().backend, str(port), str(free_port())]) as process:
        try:
            wait_until(lambda: accepts(port), "the backend to listen")
            yield port
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def tampering(backend: int, change: Change) -> AsyncIterator[int]:
    """The port of a proxy that passes on what `change` makes of the server's octets; nothing ends the session."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
        with contextlib.suppress(OSError):
            while data := change(await reader.read(65536)):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", backend)
        await asyncio.gather(pump(reader, to_server, bytes), pump(from_server, writer, change))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def load(port: int, *options: str) -> dict[str, Any]:
    """What the load generator says of 20 sessions there."""
    process = await asyncio.create_subprocess_exec(
        tools().load, "churn", str(port), "-c", "4", "-n", "20", "-t", "20", "-u", "s1", *options,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.parametrize("login", ["user", "plain", "apop"])
async def test_sessions_that_go_well_are_counted(backend: int, login: str) -> None:
    async with tampering(backend, bytes) as port:
        found = await load(port, "-a", login)
    assert (found["sessions"], found["lost"], found["altered"]) == (20, 0, 0)


async def test_one_octet_that_is_altered_is_noticed(backend: int) -> None:
    async with tampering(backend, lambda data: data.replace(b"Subject: synthetic 3", b"Subject: synthetic 4")) as port:
        found = await load(port)
    assert (found["sessions"], found["lost"], found["altered"]) == (0, 20, 20)


async def test_a_session_that_ends_too_early_is_lost(backend: int) -> None:
    async with tampering(backend, lambda data: b"" if b"synthetic 2" in data else data) as port:
        found = await load(port)
    assert (found["sessions"], found["lost"], found["altered"]) == (0, 20, 0)


def test_popproxy_is_measured_beside_nginx() -> None:
    options = ["--rounds", "1", "--scale", "0.1", "--scenarios", "sessions", "--targets", "nginx"]
    command = [sys.executable, "-m", "tests.bench", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| popproxy " in done.stdout
    assert "| popproxy to " in done.stdout
    assert "sessions lost: none; sessions with altered octets: none; measurements missing: none" in done.stdout
