"""The parts of popproxy that micro-benchmarks time, each as a function that makes the operation to be repeated.

As a program it is the worker of ``micro.py``: it reads lines of JSON, ``[name, calls]``, and answers each with the
CPU seconds that so many calls took, or with what went wrong. It imports popproxy from whatever checkout PYTHONPATH
names, and nothing of the tests, so that it can time another one. Imports stand inside, lest one that is missing there
stops all.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Any

Operation = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Core:
    """`make` returns what is timed; one call of it does `count` units of `unit`."""

    make: Callable[[], Operation]
    unit: str
    count: int = 1


_HEAD = b"+OK 4096 octets\r\n"
_MESSAGE = _HEAD + (b"x" * 70 + b"\r\n") * 56 + b".\r\n"
_SMALL = b"+OK 1024 octets\r\n" + (b"x" * 70 + b"\r\n") * 14 + b".\r\n"
_PIPELINED = 100


def splitter() -> Operation:
    from popproxy.pop3.lines import LineSplitter

    lines = LineSplitter(512)

    def operation() -> None:
        lines.feed(b"RETR 1\r\n")
        lines.next_line()
        lines.next_line()

    return operation


def parser() -> Operation:
    from popproxy.pop3.commands import parse, serialise

    return lambda: serialise(parse(b"TOP 12 20"))


def _exchange() -> Any:
    from popproxy.pop3.exchange import Exchange

    return Exchange(pipelining=True, before={"TOP": (), "UIDL": ()}, declared={"TOP": (), "UIDL": ()})


def exchange_lockstep() -> Operation:
    exchange, buffer = _exchange(), bytearray(1 << 18)
    buffer[: len(_MESSAGE)] = _MESSAGE

    def operation() -> None:
        exchange.take_lone_command(b"RETR 1\r\n")
        exchange.receive_from_backend(buffer, len(_MESSAGE))
        exchange.events.clear()

    return operation


def exchange_pipelined() -> Operation:
    exchange, buffer = _exchange(), bytearray(1 << 18)
    replies = _SMALL * _PIPELINED
    buffer[: len(replies)] = replies
    commands = b"".join(b"RETR %d\r\n" % number for number in range(1, _PIPELINED + 1))

    def operation() -> None:
        exchange.receive_from_client(commands)
        exchange.commands_to_send(client_drained=True)
        exchange.receive_from_backend(buffer, len(replies))
        assert len(exchange.events) == _PIPELINED
        exchange.events.clear()

    return operation


def exchange_body() -> Operation:
    exchange = _exchange()
    body = bytearray((b"x" * 70 + b"\r\n") * ((1 << 18) // 72))
    exchange.take_lone_command(b"RETR 1\r\n")
    exchange.receive_from_backend(_HEAD, len(_HEAD))
    return lambda: exchange.receive_from_backend(body, len(body))


def server_login() -> Operation:
    from popproxy.pop3.offer import Offer
    from popproxy.pop3.server import ServerConnection
    from popproxy.sasl.plain import Plain

    offer = Offer(passwords=True, mechanisms={"PLAIN": Plain})

    def operation() -> None:
        server = ServerConnection(offer)
        server.greet("POP3 ready")
        server.data_to_send()
        server.receive_data(b"USER s1\r\n")
        server.events_received()
        server.data_to_send()
        server.receive_data(b"PASS secret\r\n")
        assert server.events_received()
        server.login_accepted()
        server.data_to_send()
        server.take_rest()

    return operation


def client_login() -> Operation:
    from popproxy.pop3.client import ClientConnection
    from popproxy.pop3.logins import UserPass
    from popproxy.types import Secret

    logins = [UserPass("s1", Secret(b"secret"), users_own=True)]
    known: dict[str, tuple[str, ...]] = {"PIPELINING": (), "TOP": (), "UIDL": ()}

    def operation() -> None:
        client = ClientConnection(logins, known=known)
        client.receive_data(b"+OK ready <1896.697170952@synth.example>\r\n")
        client.data_to_send()
        client.receive_data(b"+OK\r\n+OK Logged in.\r\n")
        assert client.events_received()

    return operation


class _NullSink:
    """Takes everything."""

    name = "file"
    torn = 0

    def write(self, data: memoryview) -> int:
        return len(data)

    @property
    def there(self) -> bool:
        return True

    def due(self) -> bool:
        return False


def _trail() -> tuple[Callable[[], Any], Any]:
    """A maker of trails, logged in, and the log they write to."""
    from popproxy.observe.audit import AuditLog
    from popproxy.observe.metrics import Metrics
    from popproxy.types import Address, AuthFailure, Identity, Mechanism, Outcome, SessionId

    metrics = Metrics(["pop3"], ["127.0.0.1:110"])
    sink: Any = _NullSink()
    log = AuditLog(sink, metrics, on_error="closed", flush_interval=0.05, log_unknown_users=False, version="0")
    client, backend = Address("192.0.2.1", 47826), Address("192.0.2.10", 110)
    identity = Identity("s1", "s1", Mechanism.USER, proven=False)

    def start() -> Any:
        trail = log.trail(SessionId("dc92af40c059a068"), "pop3", client)
        trail.auth(Outcome.SUCCESS, AuthFailure.NONE, Mechanism.USER, "s1", True)
        trail.login(identity, "s1", "main", backend)
        return trail

    return start, log


def audit_login() -> Operation:
    start, log = _trail()

    def operation() -> None:
        start()
        log.flush()

    return operation


def audit_retr() -> Operation:
    start, log = _trail()
    trail = start()

    def operation() -> None:
        for number in range(_PIPELINED):
            trail.message("RETR", number, b"000000016b03f42d", 4096, True)
        log.flush()

    return operation


def audit_session() -> Operation:
    from popproxy.types import CloseReason

    start, log = _trail()

    def operation() -> None:
        trail = start()
        log.flush()  # somebody waits for the login
        for number in (1, 2, 3):
            trail.message("RETR", number, None, 4096, True)
        trail.update("committed", ())
        trail.end(
            CloseReason.LOGOUT, retr=3, top=0, dele=0, bytes_in=64, bytes_out=12600, duration=0.037, committed=True,
            abandoned=(),
        )  # fmt: skip
        log.flush()  # and for the answer to QUIT

    return operation


_VERIFIED = 2000


def audit_verify() -> Operation:
    import pathlib

    from popproxy.observe.audit_chain import Chain
    from popproxy.observe.audit_keys import PublicKeys, SigningKey, generate
    from popproxy.observe.audit_verify import Verifier
    from popproxy.types import Secret

    key: Any = SigningKey(Secret(generate()))
    chain, keys, path = Chain(key), PublicKeys({key.key_id: key.public_key}), pathlib.Path("audit.jsonl")
    fields = '"event.action":"dele","user.name":"s1",' + ",".join(
        f'"field{number}":"{"x" * 20}"' for number in range(8)
    )
    lines = [chain.seal_signed('"event.action":"audit_start"')]
    for number in range(_VERIFIED - 1):
        lines.append(
            chain.seal_signed('"event.action":"audit_checkpoint"') if number % 1000 == 999 else chain.seal(fields)
        )

    def operation() -> None:
        verifier = Verifier(keys)
        for number, line in enumerate(lines, 1):
            assert not [*verifier.take(path, number, line)]

    return operation


def metrics_scrape() -> Operation:
    from popproxy.observe.metrics import Metrics

    metrics = Metrics(["pop3", "pop3s"], ["127.0.0.1:110", "127.0.0.2:110"])
    return lambda: metrics.render("text/plain")


def auth_cache_hit() -> Operation:
    from popproxy.state.remembered import Remembered
    from popproxy.types import Secret

    remembered: Any = Remembered(3600)
    password = Secret("correct horse battery staple")
    for number in range(10_000):
        digest = remembered.digest(f"user{number}@example.com", password)
        remembered.remember(digest, "somebody", remembered.now())

    def operation() -> None:
        assert remembered.recall(remembered.digest("user5000@example.com", password)) == "somebody"

    return operation


CORES = {
    "splitter": Core(splitter, "line"),
    "parser": Core(parser, "command parsed and written anew"),
    "exchange, lock-step": Core(exchange_lockstep, "RETR of 4 KB"),
    "exchange, pipelined": Core(exchange_pipelined, "RETR of 1 KB", _PIPELINED),
    "exchange, body": Core(exchange_body, "256 KB of a body"),
    "server login": Core(server_login, "USER and PASS"),
    "client login": Core(client_login, "USER and PASS"),
    "audit, login": Core(audit_login, "auth and login, written"),
    "audit, retr": Core(audit_retr, "record", _PIPELINED),
    "audit, session": Core(audit_session, "session with 3 RETR, written twice"),
    "audit, verify": Core(audit_verify, "record, 400 octets", _VERIFIED),
    "auth cache": Core(auth_cache_hit, "right password of 10,000 known, recalled"),
    "metrics": Core(metrics_scrape, "scrape"),
}


def seconds(operation: Operation, calls: int) -> float:
    """How long so many calls take, without the collector of garbage."""
    repeat = range(calls)
    gc.disable()
    try:
        started = process_time()  # of the CPU: other programs do not count
        for _ in repeat:
            operation()
        return process_time() - started
    finally:
        gc.enable()


async def serve() -> None:
    """Answers the lines on standard input. Inside a loop, since the audit log asks for one."""
    made: dict[str, Operation] = {}
    for line in sys.stdin:  # nothing else happens in this loop
        name, calls = json.loads(line)
        try:
            if name not in made:
                made[name] = CORES[name].make()
                made[name]()
            answer: object = seconds(made[name], calls)
        except Exception as error:  # another checkout may not have it, or have it otherwise
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
