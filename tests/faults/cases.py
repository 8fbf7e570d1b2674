"""The registry: every fault at every point where it can happen, and what must come of it.

The rules are those at the head of `popproxy/net/relay.py`. A server's fault is in `server.Fault`; what a client does is
in `Leaves`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.faults.dialogue import BIG, MULTILINE, TRANSACTION
from tests.faults.server import Fault, Says, Then

Only = Literal["", "tls"]
"""In which variants it can be; empty: in all."""
Told = Literal["told", "cut", "unknown", "relayed", "login", "fine", "left", "delivered", "committed", "silent"]
"""What the client sees of it.

told        ``-ERR [SYS/TEMP]`` to the command at which it happened, and the end
cut         the octets so far, nothing invented behind them, and the end (under TLS without close_notify)
unknown     QUIT was sent: ``-ERR [SYS/TEMP] update outcome unknown``
relayed     what the server has said, and the session goes on if it did
login       the login is answered with `text`, and the client may try again
fine        nothing
and for clients that leave:
left        the server is left without QUIT
delivered   all that is under way comes to a client that only has closed its side, then the server is left
committed   QUIT was whole: the server gets it, and its answer is on record
silent      popproxy ends the session, for the client has done nothing for too long; the server is left
"""


@dataclass(frozen=True)
class Leaves:
    """A client that goes or falls silent: once it has the reply to `at`, or the server holds it."""

    at: str
    how: Literal["fin", "rst", "half", "stay"]
    sends: bytes = b""
    reads: bool = True
    """It takes what comes before it goes."""


@dataclass(frozen=True)
class Case:
    """One fault at one point. `reasons`: what may stand in the audit log of the failure, and in the metric.

    `within`: the key in `timeouts` after which it must be over; empty: at once.
    """

    name: str
    group: str
    told: Told
    end: tuple[str, ...]
    fault: Fault | None = None
    leaves: Leaves | None = None
    text: bytes = b"-ERR [SYS/TEMP]"
    stage: str = ""
    reasons: tuple[str, ...] = ()
    committed: bool | str | None = False
    within: str = ""
    only: Only = ""
    pipelined: bool = False
    certificate: str = ""
    big: bool = False
    death: bool = False
    """The server dies between two replies: what nobody else tells the client."""


# ---- what a server may say instead of its reply ----


def whole(reply: bytes) -> bytes:
    return reply


def nothing(_reply: bytes) -> bytes:
    return b""


def just(octets: bytes) -> Says:
    return lambda _reply: octets


def first(count: int) -> Says:
    return lambda reply: reply[:count]


def all_but(count: int) -> Says:
    return lambda reply: reply[:-count]


def half(reply: bytes) -> bytes:
    return reply[: len(reply) // 2]


def status_only(reply: bytes) -> bytes:
    return reply[: reply.index(b"\n") + 1]


def _with_more(reply: bytes) -> bytes:
    return reply + b"+OK more\r\n"


GARBAGE = just(b"\x16\x03\x01\x02\x00\x01\x00 \x80\xff\r\n")
NOT_POP3 = just(b"* OK IMAP4 ready\r\n")
ENDLESS = just(b"+OK " + b"x" * 20_000)
LONG_LINE = just(b"+OK " + b"x" * 9_000 + b"\r\n")
DEATHS: tuple[tuple[str, Then], ...] = (("fin", "fin"), ("rst", "rst"), ("bye", "bye"))
How = Literal["fin", "rst", "half", "stay"]
HOWS: tuple[How, ...] = ("fin", "rst", "half")
GONE = ("eof", "reset", "tls", "tunnel")
"""How a connection is lost may look different through TLS and SSH."""


def before_the_login() -> Iterator[Case]:
    """At every step of the login there: the client's login is answered by [SYS/TEMP], and no credential is judged."""
    more: dict[str, Any] = {"group": "login", "end": ("quit_before_login",), "committed": False}
    yield Case("connect-refused", told="login", stage="connect", reasons=("refused", "tunnel"), within="connect_total",
               fault=Fault("connect", nothing, "fin"), **more)  # fmt: skip
    yield Case("connect-blackhole", told="login", stage="connect", reasons=("timeout", "tunnel"),
               within="connect_total",
               fault=Fault("connect", nothing, "hang"), **more)  # fmt: skip
    for at, stage in (("greeting", "greeting"), ("CAPA before", "capa"), ("USER", "login"), ("PASS", "login")):
        word = at.replace(" ", "-")
        stages: dict[str, Any] = {"stage": stage, **more}
        for name, how in DEATHS:
            yield Case(f"{word}-{name}", told="login", reasons=GONE, fault=Fault(at, nothing, how),
                       only="tls" if name == "bye" else "", **stages)  # fmt: skip
        yield Case(f"{word}-half-fin", told="login", reasons=GONE, fault=Fault(at, first(2), "fin"), **stages)
        late: dict[str, Any] = {"within": "connect_total" if at == "greeting" else "backend_login", **stages}
        yield Case(f"{word}-hang", told="login", reasons=("timeout",), fault=Fault(at, nothing, "hang"), **late)
        yield Case(f"{word}-half-hang", told="login", reasons=("timeout",), fault=Fault(at, first(2), "hang"),
                   **{**late, "within": "backend_login"})  # fmt: skip
        for name, says in (("garbage", GARBAGE), ("not-pop3", NOT_POP3), ("endless", ENDLESS), ("long", LONG_LINE)):
            yield Case(f"{word}-{name}", told="login", reasons=("protocol",), fault=Fault(at, says, "hang"), **stages)
        yield Case(f"{word}-more", told="login", reasons=("protocol",), fault=Fault(at, _with_more, "hang"), **stages)
    greeting: dict[str, Any] = {"stage": "greeting", **more}
    yield Case("greeting-err", told="login", reasons=("rejected",), fault=Fault("greeting", just(b"-ERR busy\r\n"),
               "fin"),
               **greeting)  # fmt: skip
    yield Case("greeting-err-perm", told="login", text=b"-ERR [SYS/PERM]", reasons=("rejected",),
               fault=Fault("greeting", just(b"-ERR [SYS/PERM] never\r\n"), "fin"), **greeting)  # fmt: skip
    yield Case("capa-endless", told="login", stage="capa", reasons=("protocol",),
               fault=Fault("CAPA before", just(b"+OK\r\n" + b"X-NAME\r\n" * 5000), "hang"), **more)  # fmt: skip
    yield Case(
        "capa-cut", told="login", stage="capa", reasons=GONE, fault=Fault("CAPA before", all_but(3), "fin"), **more
    )
    for code, text in (
        ("AUTH", "[AUTH]"), ("none", "[AUTH]"), ("IN-USE", "[IN-USE]"), ("LOGIN-DELAY", "[LOGIN-DELAY]"),
        ("SYS/TEMP", "[SYS/TEMP]"), ("SYS/PERM", "[SYS/PERM]"),
    ):  # fmt: skip
        said = "no" if code == "none" else f"[{code}] no"
        for at in ("PASS", "USER"):
            yield Case(f"{at}-err-{code.lower().replace('/', '-')}", told="login", text=f"-ERR {text}".encode(),
                       fault=Fault(at, just(f"-ERR {said}\r\n".encode()), "go on"), **more)  # fmt: skip
    for name in ("expired", "wrong_host", "stranger"):
        yield Case(f"certificate-{name}", told="login", stage="tls", reasons=("tls",), certificate=name, only="tls",
                   fault=Fault("tls", nothing, "hang"), **more)  # fmt: skip
    yield Case("tls-not-spoken", told="login", stage="tls", reasons=("tls", "eof", "reset"), certificate="none",
               only="tls",
               fault=Fault("tls", nothing, "hang"), **more)  # fmt: skip
    yield Case("greeting-slow", group="login", told="fine", end=("logout",), committed=True,
               fault=Fault("greeting", whole, "go on", drip=2))  # fmt: skip
    yield Case("PASS-slow", group="login", told="fine", end=("logout",), committed=True,
               fault=Fault("PASS", whole, "go on", drip=2))  # fmt: skip


def between_replies() -> Iterator[Case]:
    """Of each command nothing has come back yet, or half a status line; or nothing is under way."""
    more: dict[str, Any] = {"group": "between replies", "stage": "relay"}
    for line in TRANSACTION[:-1]:
        word = line.replace(" ", "-")
        for name, how in DEATHS:
            only: Only = "tls" if name == "bye" else ""
            fault = Fault(line, nothing, how)
            yield Case(f"{word}-{name}", told="told", end=("backend_lost",), reasons=GONE, fault=fault, death=True,
                       only=only, **more)  # fmt: skip
        yield Case(f"{word}-half-fin", told="told", end=("backend_lost",), reasons=GONE, fault=Fault(line, first(2),
                   "fin"),
                   death=True, **more)  # fmt: skip
        late: dict[str, Any] = {"end": ("backend_stall",), "reasons": ("stall",), "within": "stall", **more}
        yield Case(f"{word}-hang", told="told", fault=Fault(line, nothing, "hang"), **late)
        broken: dict[str, Any] = {"end": ("backend_protocol",), **more}
        yield Case(f"{word}-garbage", told="told", reasons=("garbage",), fault=Fault(line, GARBAGE, "hang"), **broken)
        yield Case(f"{word}-long", told="told", reasons=("oversize",), fault=Fault(line, LONG_LINE, "hang"), **broken)
    yield Case("STAT-endless", told="told", end=("backend_protocol",), reasons=("oversize",),
               fault=Fault("STAT", ENDLESS, "hang"), **more)  # fmt: skip
    yield Case("DELE-half-hang", told="told", end=("backend_stall",), reasons=("stall",), within="stall",
               fault=Fault("DELE 2", first(3), "hang"), **more)  # fmt: skip
    for line in ("PASS", "STAT", "RETR 2", "UIDL", "DELE 1"):  # idle: the next command is answered
        for name, how in DEATHS:
            fault = Fault(line, whole, how)
            yield Case(f"after-{line.replace(' ', '-')}-{name}", told="told", end=("backend_lost",), reasons=GONE,
                       fault=fault, death=True, only="tls" if name == "bye" else "", **more)  # fmt: skip
    yield Case("after-DELE-unsolicited", told="told", end=("backend_protocol",), reasons=("unsolicited",),
               fault=Fault("DELE 1", _with_more, "hang"), **more)  # fmt: skip
    for line in ("STAT", "LIST 2", "DELE 1"):
        yield Case(f"pipelined-{line.replace(' ', '-')}-fin", told="told", end=("backend_lost",), reasons=GONE,
                   fault=Fault(line, nothing, "fin"), pipelined=True, death=True, **more)  # fmt: skip


def inside_bodies() -> Iterator[Case]:
    """A multi-line reply has begun: nothing may be invented."""
    points: list[tuple[str, Says]] = [
        ("status", status_only), ("half", half), ("last-octet", all_but(3)), ("dot", all_but(2)),
        ("dot-cr", all_but(1)),
    ]  # fmt: skip
    for line in ("RETR 2", "TOP 2 3", "UIDL", "LIST"):
        for point, says in points:
            for name, how in DEATHS:
                yield Case(f"body-{line.split(' ')[0]}-{point}-{name}", "bodies", "cut", ("backend_lost",),
                           stage="relay",
                           reasons=GONE, fault=Fault(line, says, how), only="tls" if name == "bye" else "")  # fmt: skip
            if point in ("half", "dot-cr"):
                yield Case(f"body-{line.split(' ')[0]}-{point}-hang", "bodies", "cut", ("backend_stall",),
                           stage="relay",
                           reasons=("stall",), fault=Fault(line, says, "hang"), within="stall")  # fmt: skip
    yield Case("RETR-pipelined-fin", "bodies", "cut", ("backend_lost",), stage="relay", reasons=GONE, pipelined=True,
               fault=Fault("RETR 2", half, "fin"))  # fmt: skip
    yield Case(
        "RETR-drip", "bodies", "fine", ("logout",), committed=True, fault=Fault("RETR 2", whole, "go on", drip=200)
    )
    body = b"+OK\r\n.stuffed wrongly\r\n.\nbare\n.\n\r.\r\nand \r\n..x\r\n" + b"y" * 20_000 + b"\r\n.\r\n"
    yield Case("RETR-odd-dots", "bodies", "relayed", ("logout",), committed=True, text=body,
               fault=Fault("RETR 2", just(body), "go on"))  # fmt: skip
    yield Case("RETR-err", "bodies", "relayed", ("logout",), committed=True, text=b"-ERR gone\r\n",
               fault=Fault("RETR 2", just(b"-ERR gone\r\n"), "go on"))  # fmt: skip


def around_update() -> Iterator[Case]:
    """QUIT was sent: only the server's own +OK is one."""
    more: dict[str, Any] = {"group": "update", "stage": "update", "end": ("update_unknown",), "committed": "unknown"}
    for name, how in DEATHS:
        yield Case(f"QUIT-{name}", told="unknown", reasons=GONE, fault=Fault("QUIT", nothing, how),
                   only="tls" if name == "bye" else "", **more)  # fmt: skip
        yield Case(f"QUIT-half-{name}", told="unknown", reasons=GONE, fault=Fault("QUIT", first(3), how),
                   only="tls" if name == "bye" else "", **more)  # fmt: skip
    yield Case("QUIT-cr", told="unknown", reasons=GONE, fault=Fault("QUIT", all_but(1), "fin"), **more)
    for name, says in (("hang", nothing), ("half-hang", first(3))):
        yield Case(f"QUIT-{name}", told="unknown", reasons=("timeout",), within="update", fault=Fault("QUIT", says,
                   "hang"),
                   **more)  # fmt: skip
    yield Case("QUIT-garbage", told="unknown", reasons=("garbage",), fault=Fault("QUIT", GARBAGE, "hang"), **more)
    yield Case("QUIT-endless", told="unknown", reasons=("oversize",), fault=Fault("QUIT", ENDLESS, "hang"), **more)
    refused: dict[str, Any] = {"group": "update", "told": "relayed", "end": ("update_refused",), "committed": False}
    for name, text in (("err", b"-ERR not all removed\r\n"), ("err-temp", b"-ERR [SYS/TEMP] not now\r\n")):
        yield Case(f"QUIT-{name}", text=text, fault=Fault("QUIT", just(text), "go on"), **refused)
    fine: dict[str, Any] = {"group": "update", "told": "fine", "end": ("logout",), "committed": True}
    yield Case("QUIT-slow", fault=Fault("QUIT", whole, "go on", drip=1), **fine)
    yield Case("QUIT-rst-behind", fault=Fault("QUIT", whole, "rst"), **fine)
    yield Case("QUIT-more-behind", fault=Fault("QUIT", _with_more, "hang"), **fine)


def clients_that_leave() -> Iterator[Case]:
    """FIN, RST or silence of the client: deletions are committed if its QUIT was whole, and only then."""
    lost: dict[str, Any] = {"group": "client", "told": "left", "end": ("client_lost",)}

    def case(name: str, leaves: Leaves, fault: Fault | None = None, **more: Any) -> Case:
        return Case(name=f"client-{name}", leaves=leaves, fault=fault, **{**lost, **more})

    for how in HOWS:
        yield case(f"greeting-{how}", Leaves("greeting", how))
        yield case(f"USER-{how}", Leaves("USER", how))
        for line in ("PASS", "STAT", "RETR 2", "DELE 2"):  # all answered, nothing under way
            yield case(f"after-{line.replace(' ', '-')}-{how}", Leaves(line, how))
        for octets in (b"QUIT", b"QUIT\r", b"QUI", b"QUIT \r\n"[:5]):
            word = octets.decode().replace("\r", "cr").replace(" ", "sp")
            yield case(f"piece-{word}-{how}", Leaves("DELE 2", how, sends=octets))
    for line in ("STAT", "UIDL", "DELE 2", "RETR 2"):
        held = Fault(line, half if line in MULTILINE or line.startswith("RETR") else nothing, "wait")
        word = line.replace(" ", "-")
        yield case(f"in-{word}-rst", Leaves(line, "rst"), held)
        yield case(f"in-{word}-fin", Leaves(line, "fin"), held)
        yield case(f"in-{word}-half", Leaves(line, "half"), held, told="delivered")
    yield case(
        "in-RETR-and-QUIT-rst", Leaves("RETR 2", "rst", sends=b"DELE 2\r\nQUIT\r\n"), Fault("RETR 2", half, "wait")
    )
    yield case("unread-RETR-and-QUIT-rst", Leaves("DELE 2", "rst", sends=b"RETR 1\r\nQUIT\r\n", reads=False), big=True)
    yield case("in-PASS-rst", Leaves("PASS", "rst"), Fault("PASS", nothing, "wait"))
    quit_held = Fault("QUIT", nothing, "wait")
    committed: dict[str, Any] = {"told": "committed", "end": ("logout",), "committed": True}
    for how in HOWS:
        yield case(f"whole-QUIT-{how}", Leaves("QUIT", how), quit_held, **committed)
        yield case(f"DELE-QUIT-{how}", Leaves("RSET", how, sends=b"DELE 2\r\nQUIT\r\n", reads=False),
                   **{**committed, "end": ("logout", "client_lost")} if how != "half" else committed)  # fmt: skip
    silent: dict[str, Any] = {"told": "silent"}
    yield case("no-greeting-read", Leaves("greeting", "stay"), **silent, end=("login_timeout",), within="login")
    yield case("USER-and-silence", Leaves("USER", "stay"), **silent, end=("login_timeout",), within="login")
    yield case("idle", Leaves("DELE 2", "stay"), **silent, end=("idle",), within="idle")
    yield case("half-a-command", Leaves("DELE 2", "stay", sends=b"RETR "), **silent, end=("idle",), within="idle")
    yield case("reads-nothing", Leaves("DELE 2", "stay", sends=b"RETR 1\r\n", reads=False), **silent, big=True,
               end=("client_stall",), within="stall")  # fmt: skip


def registry() -> list[Case]:
    """All of them. Names are unique."""
    cases = [
        *before_the_login(), *between_replies(), *inside_bodies(), *around_update(), *clients_that_leave(),
    ]  # fmt: skip
    assert len({case.name for case in cases}) == len(cases), "two cases have one name"
    return cases


__all__ = ["BIG", "Case", "Leaves", "registry"]
