"""popproxy between the clients and the servers of all cases: in clear or under TLS, directly or through SSH."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.faults.cases import Case
from tests.faults.dialogue import BIG, MESSAGES
from tests.faults.play import PATIENCE, Door, Heard, Verdict, converse, judge_books, judge_client, judge_next, leave
from tests.faults.server import Seen, Server
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, proxies, settings
from tests.peers.ssh import openssh
from tests.session.rig import client_context

Link = Literal["plain", "tls"]
Way = Literal["tcp", "ssh"]
TIMEOUTS = {
    "handshake": 5.0, "login": 6.0, "connect": 2.0, "connect_total": 3.0, "backend_login": 3.0, "idle": 6.0,
    "stall": 3.0, "update": 3.0,
}  # fmt: skip
AT_ONCE = 40


@dataclass(frozen=True)
class Variant:
    """How both links are made."""

    link: Link
    way: Way

    def __str__(self) -> str:
        return f"{self.link}, {self.way}"


VARIANTS = [Variant("plain", "tcp"), Variant("tls", "tcp"), Variant("plain", "ssh"), Variant("tls", "ssh")]


class Certificates:
    """Good ones and bad ones."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.good = self.authority.server()
        stranger = Authority(directory, "a stranger").issue("localhost", "127.0.0.1", file="stranger")
        self.bad = {
            "expired": self.authority.expired(), "wrong_host": self.authority.wrong_host(), "stranger": stranger,
        }  # fmt: skip

    def context(self, case: Case) -> ssl.SSLContext | None:
        """For the server of a case."""
        if case.certificate == "none":
            return None
        return server_context(self.bad.get(case.certificate, self.good))


def server_context(files: CertificateFiles) -> ssl.SSLContext:
    """TLS with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


def server_for(case: Case, tls: ssl.SSLContext | None) -> Server:
    """The server of a case, broken."""
    fault = case.fault
    early = fault if fault is not None and fault.at in ("connect", "greeting", "CAPA before", "tls", "USER") else None
    messages = [BIG, *MESSAGES[1:]] if case.big else None
    return Server(lambda _user: fault, tls=tls, early=early, messages=messages)


async def play_all(variant: Variant, cases: Sequence[Case], at_once: int = AT_ONCE) -> list[Verdict]:
    """All cases that there are for a variant, at one popproxy, so many at a time."""
    cases = [case for case in cases if case.only in ("", variant.link)]
    async with site(variant, cases) as (proxy, door, servers, good):
        places = asyncio.Semaphore(at_once)
        took: dict[str, tuple[Verdict, Heard, int]] = {}

        async def one(number: int, case: Case) -> None:
            async with places:
                took[case.name] = await _play(door, number, case, servers[case.name], good)

        await asyncio.gather(*(one(number, case) for number, case in enumerate(cases)))
        await asyncio.to_thread(proxy.settled)
        records: dict[str, list[dict[str, Any]]] = defaultdict(list)
        every = await asyncio.to_thread(proxy.audit)
        for record in every:
            records[str(record.get("source.ip", ""))].append(record)
        for number, case in enumerate(cases):
            verdict, heard, count = took[case.name]
            of_case = records[_source(number)]
            sessions = list(dict.fromkeys(record["session.id"] for record in of_case))
            seen = servers[case.name].seen
            if len(sessions) != 2:
                verdict.wrong.append(f"{len(sessions)} sessions on record")
                continue
            first, second = ([r for r in of_case if r["session.id"] == session] for session in sessions)
            judge_books(verdict, first, any(session.quit for session in seen[:count]))
            judge_next(verdict, heard, next((s for s in reversed(seen) if s.user), None), second)
        metrics = await asyncio.to_thread(proxy.metrics)
        verdicts = [took[case.name][0] for case in cases]
        verdicts[0].wrong += _books_differ(metrics, every)
        for case, verdict in zip(cases, verdicts, strict=True):
            verdict.wrong += _backend_errors(metrics, case, servers[case.name].port)
        return verdicts


async def _play(
    door: Door, number: int, case: Case, server: Server, good: ssl.SSLContext | None
) -> tuple[Verdict, Heard, int]:
    user, source = f"user{number}", _source(number)
    deadline = TIMEOUTS[case.within] if case.within else 0.0
    if case.leaves is not None:
        heard = await leave(door, case, server, user, source, deadline + PATIENCE)
        seen = await _ended(server, user, deadline + PATIENCE)
    else:
        heard = await converse(door, user, source, deadline + PATIENCE, pipelined=case.pipelined)
        seen = server.seen
    count = len(seen)
    verdict = judge_client(case, heard, seen, deadline)
    if case.leaves is not None and not all(session.ended for session in seen):
        verdict.wrong.append("the server was not left")
    server.mend(good)
    return verdict, await converse(door, user, source, PATIENCE), count


async def _ended(server: Server, user: str, seconds: float) -> list[Seen]:
    """The server's sessions with this user, once they have ended."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not all(seen.ended for seen in server.seen):
                await asyncio.sleep(0.02)
    return list(server.seen)


def _source(number: int) -> str:
    return f"127.0.{2 + number // 200}.{1 + number % 200}"


def _books_differ(metrics: dict[str, float], records: list[dict[str, Any]]) -> list[str]:
    """What the metrics say otherwise than the audit log."""
    wrong = []
    ended = Counter((r["popproxy.listener"], r["event.reason"]) for r in records if r["event.action"] == "session_end")
    for (listener, reason), count in ended.items():
        shown = metrics.get(f'popproxy_sessions_ended_total{{listener="{listener}",reason="{reason}"}}')
        if shown != count:
            wrong.append(f"metric: {shown} sessions ended by {reason}, on record {count}")
    for outcome in ("success", "failure", "unknown"):
        name = {"success": "committed", "failure": "refused", "unknown": "unknown"}[outcome]
        of_outcome = [r for r in records if r["event.action"] == "update" and r["event.outcome"] == outcome]
        if metrics[f'popproxy_update_total{{outcome="{name}"}}'] != len(of_outcome):
            wrong.append(f"metric: updates {name} differ from {len(of_outcome)} on record")
        deleted = sum(r["pop3.deleted_total"] for r in of_outcome)
        if metrics[f'popproxy_deletions_total{{outcome="{name}"}}'] != deleted:
            wrong.append(f"metric: deletions {name} differ from {deleted} on record")
    for verb in ("RETR", "TOP"):
        cut = sum(r["event.action"] == verb.lower() and r.get("pop3.complete") is False for r in records)
        if metrics[f'popproxy_messages_truncated_total{{verb="{verb}"}}'] != cut:
            wrong.append(f"metric: truncated {verb} differs from {cut} on record")
    for name, value in metrics.items():
        if name.startswith(("popproxy_sessions{", "popproxy_backend_sessions{")) and value:
            wrong.append(f"metric: {name} {value} after the end")
    return wrong


def _backend_errors(metrics: dict[str, float], case: Case, port: int) -> list[str]:
    if not case.stage:
        return []
    shown = {
        name.split('reason="')[1].split('"')[0]: value
        for name, value in metrics.items()
        if name.startswith("popproxy_backend_errors_total{") and all(
            label in name for label in (f':{port}"', f'stage="{case.stage}"')
        )
    }  # fmt: skip
    found = {reason for reason, value in shown.items() if value}
    return [] if found and found <= set(case.reasons) else [f"metric: backend_errors {case.stage} {found}"]


@contextlib.asynccontextmanager
async def site(
    variant: Variant, cases: Sequence[Case]
) -> AsyncIterator[tuple[Proxy, Door, dict[str, Server], ssl.SSLContext | None]]:
    """A popproxy, where it listens, a server for each case, in a pool of its own, and the TLS of mended ones."""
    with contextlib.ExitStack() as stack:
        certificates = Certificates(stack.enter_context(public_directory("faults")))
        servers: dict[str, Server] = {}
        try:
            for case in cases:
                servers[case.name] = server_for(case, certificates.context(case) if variant.link == "tls" else None)
            start = stack.enter_context(proxies())
            configuration = _configuration(variant, cases, servers, certificates)
            if variant.way == "ssh":
                sshd = stack.enter_context(await asyncio.to_thread(openssh))
                configuration["tunnels"] = {"jump": sshd.keys.tunnel(sshd.user)}
            proxy = await asyncio.to_thread(start, configuration)
            if variant.link == "tls":
                door = Door(proxy.port("pop3s"), client_context(certificates.authority.ca))
            else:
                door = Door(proxy.port())
            if variant.way == "ssh":
                await _tunnel_up(proxy)
            good = server_context(certificates.good) if variant.link == "tls" else None
            yield proxy, door, servers, good
        finally:
            for server in servers.values():
                await server.close()


async def _tunnel_up(proxy: Proxy) -> None:
    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(proxy.metrics))['popproxy_ssh_connections{state="up",tunnel="jump"}']:
            await asyncio.sleep(0.1)


def _configuration(
    variant: Variant, cases: Sequence[Case], servers: dict[str, Server], certificates: Certificates
) -> dict[str, Any]:
    configuration = settings(
        "127.0.0.1:1", certificates.good if variant.link == "tls" else None,
        timeouts={**{name: f"{seconds}s" for name, seconds in TIMEOUTS.items()}, "drain": "1s"},
        penalties={"allow": ["127.0.0.0/8"]},
    )  # fmt: skip
    pool: dict[str, Any] = {"tls": "none", "allow_cleartext": variant.way == "tcp"}
    if variant.link == "tls":
        pool = {"tls": "implicit", "ca": str(certificates.authority.ca)}
    if variant.way == "ssh":
        pool["tunnel"] = "jump"
    configuration["pools"] = {
        f"p{number}": {"servers": [f"127.0.0.1:{servers[case.name].port}"], **pool} for number, case in enumerate(cases)
    }
    configuration["routing"] = {
        "rules": [{"user": f"user{number}", "pool": f"p{number}"} for number, _ in enumerate(cases)],
    }
    return configuration
