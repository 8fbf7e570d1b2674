"""The same deaths of servers behind Debian's other proxies: do they tell the client, commit, hang?"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.proxies import PEERS, TEMPLATES
from tests.faults.cases import Case, registry
from tests.faults.play import HEALTHY, Door, Verdict, converse, judge_client
from tests.faults.server import Fault, Server
from tests.peers.certs import Authority
from tests.peers.process import Process, accepts, free_port, public_directory, require

NAMES = ("dovecot", "nginx", "perdition")
PATIENCE = 15.0
"""Seconds until a session counts as hanging."""


@dataclass(frozen=True)
class Figures:
    """Of a proxy: `told` of `deaths` between two replies; of all `cases`, what must not be."""

    name: str
    cases: int
    told: int
    deaths: int
    committed: int
    cut_shown_whole: int
    hanging: int


def deaths() -> list[Case]:
    """A server that dies between replies, inside bodies and after QUIT, in clear, one command at a time."""
    return [
        case for case in registry()
        if case.told in ("told", "cut", "unknown") and case.only == "" and not case.pipelined
        and case.fault is not None and case.fault.then in ("fin", "rst") and case.fault.at != "PASS"
    ]  # fmt: skip


async def play(name: str, cases: Sequence[Case]) -> Figures:
    """All `cases` behind one proxy."""
    faults = {f"user{number}": case.fault for number, case in enumerate(cases)}

    def fault_for(user: str) -> Fault | None:
        return faults.get(user)

    server = Server(fault_for)
    async with _authenticator(server.port) as auth, _running(name, server.port, auth) as port:
        try:
            healthy = await converse(Door(port), "healthy", "127.0.0.1", PATIENCE)
            assert healthy.to("QUIT") == HEALTHY["QUIT"], f"{name} does not work: {healthy}"
            verdicts = []
            for start in range(0, len(cases), 10):
                numbers = range(start, min(start + 10, len(cases)))
                verdicts += await asyncio.gather(
                    *(_one(port, f"user{number}", cases[number], server) for number in numbers)
                )
        finally:
            await server.close()
    between = [verdict for verdict in verdicts if verdict.case.death]
    return Figures(
        name, len(cases), sum(verdict.told for verdict in between), len(between),
        sum(verdict.wrongly_committed for verdict in verdicts), sum(verdict.shown_complete > 0 for verdict in verdicts),
        sum(verdict.seconds >= PATIENCE for verdict in verdicts),
    )  # fmt: skip


async def _one(port: int, user: str, case: Case, server: Server) -> Verdict:
    heard = await converse(Door(port), user, "127.0.0.1", PATIENCE)
    return judge_client(case, heard, [seen for seen in server.seen if seen.user == user], 0.0)


@contextlib.asynccontextmanager
async def _authenticator(server: int) -> AsyncIterator[int]:
    """nginx asks it where to go; everybody goes there."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: %d\r\n\r\n" % server)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def _running(name: str, server: int, auth: int) -> AsyncIterator[int]:
    """The proxy as the benchmark sets it up; where it listens in clear."""
    peer = PEERS[name]
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(public_directory(name))
        directory.chmod(0o777)
        certificate = Authority(directory).server()
        certificate.key.chmod(0o644)
        port = free_port()
        values = {
            "name": f"faults-{port}", "dir": str(directory), "port": str(port), "tls_port": str(free_port()), "key":
            str(certificate.key), "cert": str(certificate.cert), "backend_port": str(server), "auth_port": str(auth),
            **peer.variants[0],
        }  # fmt: skip
        process = await asyncio.to_thread(_start, name, directory, values)
        stack.callback(process.stop)
        await asyncio.to_thread(process.wait_for, lambda: accepts(port), f"{name} listens")
        yield port


def _start(name: str, directory: Path, values: dict[str, str]) -> Process:
    peer = PEERS[name]
    text = (TEMPLATES / peer.template).read_text()
    for _ in range(2):  # a value may itself name a value
        text = re.sub(r"@(\w+)@", lambda word: values.get(word[1], word[0]), text)
    config = directory / "config"
    config.write_text(text)
    arguments = [str(config) if word == "@config@" else word for word in peer.arguments]
    return Process(name, [require(peer.program), *arguments], directory / "output.log", directory)


async def compare() -> list[Figures]:
    """All of them, one after the other."""
    cases = deaths()
    return [await play(name, cases) for name in NAMES]
