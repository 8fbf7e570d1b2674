"""Plays one case against a proxy, and judges what both ends and the books say of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any

from tests.faults.cases import Case
from tests.faults.dialogue import COMMITTED, TRANSACTION, healthy_replies, is_multiline
from tests.faults.server import Seen, Server
from tests.peers.canaries import canary
from tests.session.rig import Peer

PATIENCE = 30.0
"""Seconds beyond the deadline that should have ended a session, until it counts as hanging."""
HEALTHY = healthy_replies()


@dataclass(frozen=True)
class Door:
    """Where clients of a proxy knock. `tls`: how they speak TLS from the first octet."""

    port: int
    tls: ssl.SSLContext | None = None

    async def connect(self, source: str) -> Peer:
        """A connection from this address of ours."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        peer = Peer(sock)
        if self.tls is not None:
            await peer.handshake(self.tls, "localhost")
        return peer


@dataclass
class Heard:
    """What a client got: the whole replies to its commands, in order, and `rest`, what came behind the last one."""

    replies: list[tuple[str, bytes]] = field(default_factory=list)
    rest: bytes = b""
    ended: str = ""
    """eof, reset or tls (close_notify); "hangs" if it never ended."""
    seconds: float = 0.0
    """From the moment of the fault to the end."""

    def to(self, line: str) -> bytes | None:
        """The reply to a command; None if there was none, or only a part."""
        return next((reply for sent, reply in self.replies if sent == line), None)


async def reply_to(client: Peer, line: str, seconds: float) -> bytes | None:
    """A whole reply, or None at the end of the connection; what there was of it is in `received` then."""
    while b"\n" not in client.received:
        if not await client.more(seconds) and b"\n" not in client.received:
            return None
    end = client.received.index(b"\n") + 1
    if client.received.startswith(b"+OK") and is_multiline(line):
        while (mark := client.received.find(b"\r\n.\r\n", end - 2)) < 0:
            if not await client.more(seconds) and client.received.find(b"\r\n.\r\n", end - 2) < 0:
                return None
        end = mark + 5
    reply = bytes(client.received[:end])
    del client.received[:end]
    return reply


async def converse(door: Door, user: str, source: str, patience: float, *, pipelined: bool = False) -> Heard:
    """The whole dialogue, or as much of it as there can be."""
    heard, loop = Heard(), asyncio.get_running_loop()
    client = await door.connect(source)
    since = loop.time()
    try:
        lines = ["", f"USER {user}", f"PASS {canary()}", *TRANSACTION]
        for number, line in enumerate(lines):
            if line and not (pipelined and number > 3):
                at_once = (
                    "".join(f"{later}\r\n" for later in lines[number:]) if pipelined and number == 3 else f"{line}\r\n"
                )
                since = loop.time()
                with contextlib.suppress(ConnectionError):
                    await client.send(at_once)
            shown = line.partition(" ")[0] if line.startswith(("USER", "PASS")) else line or "greeting"
            reply = await reply_to(client, line, patience)
            if reply is None:
                break
            heard.replies.append((shown, reply))
            if shown == "PASS" and reply.startswith(b"-ERR"):
                heard.seconds = loop.time() - since
                await client.send("QUIT\r\n")
                heard.replies.append(("QUIT before", (await reply_to(client, "QUIT", patience)) or b""))
                break
            if reply.startswith(b"-ERR [SYS/TEMP]"):
                break  # whatever we have sent, there is nothing to be had any more
        heard.rest = await client.rest(patience)
        heard.ended = client.ended
    except TimeoutError:
        heard.rest, heard.ended = bytes(client.received), "hangs"
    finally:
        client.close()
    heard.seconds = heard.seconds or loop.time() - since
    return heard


async def leave(door: Door, case: Case, server: Server, user: str, source: str, patience: float) -> Heard:
    """The dialogue up to a point, and what the client does there."""
    assert case.leaves is not None
    leaves, heard, loop = case.leaves, Heard(), asyncio.get_running_loop()
    client = await door.connect(source)
    try:
        for line in ("greeting", f"USER {user}", f"PASS {canary()}", *TRANSACTION):
            word = line.partition(" ")[0] if line.startswith(("USER", "PASS")) else line
            if line != "greeting":
                await client.send(f"{line}\r\n")
            if word == leaves.at and case.fault is not None:
                await _held(server, user, line)
                break
            reply = await reply_to(client, line, patience)
            assert reply is not None, f"ended at {line}"
            assert reply.startswith(b"+OK"), (line, reply)
            heard.replies.append((word, reply))
            if word == leaves.at:
                break
        if leaves.sends:
            await client.send(leaves.sends)
        if leaves.sends and not leaves.reads:
            await asyncio.sleep(0.2)
        since = loop.time()
        match leaves.how:
            case "fin":
                client.close()
            case "rst":
                client.reset()
            case "half":
                with contextlib.suppress(OSError):  # popproxy may have closed already
                    await client.farewell()
                    client.half_close()
        server.gone.set()
        if leaves.how == "half" or (leaves.how == "stay" and leaves.reads):
            heard.rest = await client.rest(patience)
            heard.ended = client.ended
        elif leaves.how == "stay":
            await _until(lambda: bool(server.seen and server.seen[-1].ended), patience)
        heard.seconds = loop.time() - since
    except TimeoutError:
        heard.ended = "hangs"
    finally:
        client.close()
    return heard


async def _held(server: Server, user: str, line: str) -> None:
    verb = "PASS" if line.startswith("PASS") else line
    await _until(lambda: any(seen.user == user and seen.lines[-1:] == [verb] for seen in server.seen), 20)
    await asyncio.sleep(0.05)  # what the server says of its reply


async def _until(condition: Any, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def expected(line: str) -> bytes:
    """What a client gets to a line when nothing is wrong; of CAPA only how it begins and ends is the server's."""
    return HEALTHY.get(line, b"+OK")


def right(line: str, reply: bytes, *, big: bool = False) -> bool:
    """Is it what the server has said? In a `big` maildrop only the lines that tell no sizes are compared."""
    if line in TRANSACTION and line != "CAPA" and not (big and line in ("STAT", "LIST")):
        return reply == HEALTHY[line]
    return reply.startswith(b"+OK") and reply.endswith(b"\r\n")


@dataclass
class Verdict:
    """What was wrong; empty lists are good."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    wrongly_committed: int = 0
    false_ok: int = 0
    shown_complete: int = 0
    """Truncated messages that look whole."""
    told: bool = False
    seconds: float = 0.0
    """Beyond its deadline."""


def judge_client(case: Case, heard: Heard, seen: list[Seen], deadline: float) -> Verdict:
    """What the client got, and what the server saw."""
    verdict = Verdict(case, seconds=heard.seconds - deadline)
    complain = verdict.wrong.append
    if heard.ended == "hangs":
        complain(f"hangs at {heard.replies[-1:]} {heard.rest[:80]!r}")
    at = "" if case.fault is None else {"greeting": "PASS", "connect": "PASS", "tls": "PASS", "USER": "PASS",
                                        "CAPA before": "PASS"}.get(case.fault.at, case.fault.at)  # fmt: skip
    for line, reply in heard.replies:
        odd = case.told in ("relayed", "login") and line == at
        if reply.startswith(b"+OK") and not right(line, reply, big=case.big) and not odd:
            verdict.false_ok += 1
            complain(f"{line}: {reply[:200]!r}")
    quit_sent = any(line == "QUIT" for line, _ in heard.replies) or at == "QUIT"
    quit_seen = any(session.quit for session in seen)
    if case.leaves is None and quit_seen and not quit_sent and not case.pipelined:
        verdict.wrongly_committed += 1
        complain("the server got a QUIT that nobody sent")
    last_line, last = heard.replies[-1] if heard.replies else ("", b"")
    match case.told:
        case "told":
            verdict.told = last.startswith(case.text) and heard.rest == b""
            if not verdict.told:
                complain(f"told {last_line}: {last[:80]!r} {heard.rest[:80]!r}")
            _quit_not_seen(verdict, quit_seen)
        case "cut":
            whole = heard.to(at)
            if whole is not None:
                verdict.shown_complete += 1
                complain(f"a truncated reply looks whole: {whole[-80:]!r}")
            if not HEALTHY[at].startswith(heard.rest) or heard.rest.endswith(b"\r\n.\r\n"):
                verdict.shown_complete += 1
                complain(f"something was invented: {heard.rest[-80:]!r}")
            if heard.ended == "tls":
                verdict.shown_complete += 1
                complain("close_notify behind half a reply")
            _quit_not_seen(verdict, quit_seen)
        case "unknown":
            if not last.startswith(b"-ERR [SYS/TEMP] update outcome unknown") or heard.rest:
                complain(f"unknown: {last!r} {heard.rest!r}")
            verdict.false_ok += last_line == "QUIT" and last.startswith(b"+OK")
        case "login":
            answer = heard.to("PASS") or b""
            if not answer.startswith(case.text) or not (heard.to("QUIT before") or b"").startswith(b"+OK"):
                complain(f"login: {answer!r} {heard.replies[-1:]} {heard.rest[:80]!r}")
            if case.certificate and any(
                line.startswith(("USER", "PASS")) for session in seen for line in session.lines
            ):
                complain("a credential was sent")
        case "relayed" | "fine":
            if case.told == "relayed" and heard.to(at) != case.text:
                complain(f"relayed: {heard.to(at)!r}")
            if [line for line, _ in heard.replies[-len(TRANSACTION) :]] != list(TRANSACTION) or heard.rest:
                complain(f"{case.told}: ended after {last_line} {last!r} {heard.rest!r}")
        case "left" | "silent":
            _quit_not_seen(verdict, quit_seen)
        case "delivered":
            if heard.rest != HEALTHY[at]:
                complain(f"delivered: {heard.rest[-80:]!r}")
            _quit_not_seen(verdict, quit_seen)
        case "committed":
            if not quit_seen and case.end == ("logout",):
                complain("QUIT did not get to the server")
            if case.leaves is not None and case.leaves.how == "half" and not heard.rest.endswith(b"+OK\r\n"):
                complain(f"no answer to QUIT: {heard.rest!r}")
    return verdict


def _quit_not_seen(verdict: Verdict, quit_seen: bool) -> None:
    if quit_seen:
        verdict.wrongly_committed += 1
        verdict.wrong.append("QUIT has got to the server")


def judge_books(verdict: Verdict, records: list[dict[str, Any]], quit_seen: bool) -> None:
    """The audit records of the session."""
    case, complain = verdict.case, verdict.wrong.append
    ends = [record for record in records if record["event.action"] == "session_end"]
    if len(ends) != 1:
        complain(f"{len(ends)} session_end records")
        return
    end = ends[0]
    if end["event.reason"] not in case.end:
        complain(f"session_end {end['event.reason']}, not {case.end}")
    committed = quit_seen if len(case.end) > 1 else case.committed
    if end.get("pop3.committed") != committed:
        complain(f"committed {end.get('pop3.committed')}, not {committed}")
    if case.stage:
        failures = [
            r for r in records if r["event.action"] == f"backend_{case.stage}" and r["event.outcome"] == "failure"
        ]
        reasons = {record["event.reason"] for record in failures}
        if not reasons or not reasons <= set(case.reasons):
            shown = [
                (r["event.action"], r.get("event.reason")) for r in records if r["event.action"].startswith("backend_")
            ]
            complain(f"audit: {shown}, not backend_{case.stage} {case.reasons}")
    updates = [record for record in records if record["event.action"] == "update"]
    if bool(updates) != (case.committed in (True, "unknown") or "update_refused" in case.end) and len(case.end) == 1:
        complain(f"{len(updates)} update records")
    marked = {item["number"] for record in updates for item in record["pop3.deleted"]}
    if updates and marked != set(COMMITTED):
        complain(f"update names {marked}")


def judge_next(verdict: Verdict, heard: Heard, seen: Seen | None, records: list[dict[str, Any]]) -> None:
    """The session after it, of the same user, with the server mended."""
    lines = [line for line, _ in heard.replies]
    if (
        lines[3:] != list(TRANSACTION)
        or not all(right(line, reply, big=verdict.case.big) for line, reply in heard.replies)
        or heard.rest
    ):
        verdict.wrong.append(f"the next session: {heard.replies[-1:]} {heard.rest!r} {heard.ended}")
    if seen is None or seen.deleted != COMMITTED or not seen.quit:
        verdict.wrong.append(f"the next session at the server: {seen}")
    ends = [record for record in records if record["event.action"] == "session_end"]
    if [(end["event.reason"], end.get("pop3.committed")) for end in ends] != [("logout", True)]:
        verdict.wrong.append(f"the next session's end: {ends}")
