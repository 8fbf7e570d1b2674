"""``python -m tests.bench.kerberos_logins``: what a login by ticket takes beyond one by password, beside Dovecot's.

In each round popproxy and Dovecot get the same number of logins of each kind, in random order, from this process,
which has made the tokens before. Only the proxies' CPU time counts. A login is connect, greeting, login, QUIT, with the
login at the synthetic server behind; popproxy goes there as a master user for clients with tickets, Dovecot with a
password from its passdb. Neither judges the password of USER and PASS. Both keep a replay cache.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.bench.facts import facts
from tests.bench.kerberos_site import PASSWORD, USER, KerberosSite, kerberos_site
from tests.bench.report import ratio, summary, table
from tests.bench.run import say
from tests.bench.scenario import settle
from tests.bench.target import Target, TargetError
from tests.bench.tools import CompileError
from tests.peers.kpop_client import hello
from tests.peers.krb5_client import ApReqClient
from tests.peers.process import PeerMissingError
from tests.peers.tickets import LAYERED, Flag, Initiator

GOAL = 0.7
"""Of the CPU time that Dovecot takes for a ticket beyond a password."""
AT_A_TIME = 16


class LoginFailedError(Exception):
    """A login that should succeed did not; the text is what the proxy said."""


class Link:
    """A client's connection, line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.send = writer.write
        self.close = writer.close

    async def ok(self, line: bytes | None = None, start: bytes = b"+OK") -> bytes:
        """Sends a line; the reply, which must begin like this."""
        if line is not None:
            self.send(line + b"\r\n")
        reply = await self._reader.readuntil(b"\r\n")
        if not reply.startswith(start):
            raise LoginFailedError(reply.decode(errors="replace"))
        return reply[:-2]

    async def framed(self) -> bytes:
        """A message behind its length."""
        return await self._reader.readexactly(int.from_bytes(await self._reader.readexactly(4), "big"))

    async def octet(self) -> bytes:
        """One."""
        return await self._reader.readexactly(1)


Login = Callable[[Link], Awaitable[None]]
"""From the connection to +OK; for one use."""


def by_password(_site: KerberosSite) -> Login:
    """USER and PASS."""

    async def login(link: Link) -> None:
        await link.ok()
        await link.ok(f"USER {USER}".encode())
        await link.ok(f"PASS {PASSWORD}".encode())

    return login


def by_gssapi(site: KerberosSite, flags: int = LAYERED) -> Login:
    """AUTH GSSAPI with an initial response, without a layer; mutual, as fetchmail and mutt."""
    gss = Initiator(site.ccache, flags)
    token = base64.b64encode(gss.step() or b"")

    async def login(link: Link) -> None:
        await link.ok()
        challenge = await link.ok(b"AUTH GSSAPI " + token, b"+ ")
        if not gss.complete:
            gss.step(base64.b64decode(challenge[2:]))
            challenge = await link.ok(b"", b"+ ")
        gss.unwrap(base64.b64decode(challenge[2:]))
        await link.ok(base64.b64encode(gss.wrap(b"\x01\0\0\0" + USER.encode(), confidential=False)))

    return login


def by_gssapi_alone(site: KerberosSite) -> Login:
    """The same, not mutual, as curl."""
    return by_gssapi(site, Flag.integrity)


def by_kpop(site: KerberosSite) -> Login:
    """sendauth, mutual, as fetchmail; then USER and PASS."""
    client = ApReqClient(site.ccache, site.service)

    async def login(link: Link) -> None:
        link.send(hello(client.ap_req))
        if await link.octet() != b"\0" or await link.framed():
            raise LoginFailedError("the AP-REQ is refused")
        if not client.accepts(await link.framed()):
            raise LoginFailedError("the AP-REP is not good")
        await link.ok()
        await link.ok(f"USER {USER}".encode())
        await link.ok(b"PASS x")

    return login


@dataclass(frozen=True)
class Case:
    """A kind of login at one of the proxies. `values`: CPU in microseconds for a login, by round."""

    name: str
    target: Target
    port: int
    login: Callable[[KerberosSite], Login]
    values: list[float] = field(default_factory=list)


def cases(site: KerberosSite) -> dict[str, Case]:
    """All that are measured."""
    own, dovecot = site.popproxy, site.dovecot
    made = [
        Case("popproxy password", own, own.ports.plain, by_password),
        Case("popproxy GSSAPI", own, own.ports.plain, by_gssapi),
        Case("popproxy GSSAPI, not mutual", own, own.ports.plain, by_gssapi_alone),
        Case("popproxy KPOP", own, site.kpop, by_kpop),
        Case("Dovecot password", dovecot, dovecot.ports.plain, by_password),
        Case("Dovecot GSSAPI", dovecot, dovecot.ports.plain, by_gssapi),
        Case("Dovecot GSSAPI, not mutual", dovecot, dovecot.ports.plain, by_gssapi_alone),
    ]
    return {case.name: case for case in made}


async def log_in(port: int, logins: Sequence[Login]) -> None:
    """Carries all of them out, some at a time. Raises LoginFailedError."""
    left = list(logins)

    async def work() -> None:
        while left:
            login = left.pop()
            link = Link(*await asyncio.open_connection("127.0.0.1", port))
            try:
                await login(link)
                await link.ok(b"QUIT")
            finally:
                link.close()

    async with asyncio.timeout(120):
        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))


def measure(site: KerberosSite, case: Case, count: int) -> float:
    """CPU in microseconds for a login."""
    logins = [case.login(site) for _ in range(count)]
    settle()
    before = case.target.group.cpu()
    asyncio.run(log_in(case.port, logins))
    settle()
    return (case.target.group.cpu() - before).total / 1e3 / count


RATIOS = (
    # name, (subject, what is taken off), (other, what is taken off)
    ("GSSAPI beyond password", ("popproxy GSSAPI", "popproxy password"), ("Dovecot GSSAPI", "Dovecot password")),
    (
        "GSSAPI, not mutual, beyond password",
        ("popproxy GSSAPI, not mutual", "popproxy password"),
        ("Dovecot GSSAPI, not mutual", "Dovecot password"),
    ),
    ("KPOP beyond password", ("popproxy KPOP", "popproxy password"), ("Dovecot GSSAPI", "Dovecot password")),
    ("GSSAPI as a whole", ("popproxy GSSAPI", ""), ("Dovecot GSSAPI", "")),
    ("KPOP as a whole", ("popproxy KPOP", ""), ("Dovecot GSSAPI", "")),
    ("password as a whole", ("popproxy password", ""), ("Dovecot password", "")),
)


def beyond(measured: dict[str, Case], names: tuple[str, str]) -> list[float]:
    """By round what one kind of login takes more than the other."""
    whole, off = (measured[name].values if name else [] for name in names)
    return [value - (off[number] if off else 0) for number, value in enumerate(whole)]


def report(measured: dict[str, Case]) -> str:
    """Both tables."""
    rows = [[case.name, summary(case.values)] for case in measured.values()]
    ratios = []
    for name, subject, other in RATIOS:
        mine, theirs = beyond(measured, subject), beyond(measured, other)
        inside = [a / b for a, b in zip(mine, theirs, strict=True)]
        quartiles = statistics.quantiles(inside, n=4) if len(inside) > 1 else [inside[0]] * 3
        goal = "" if "beyond" not in name else "met" if statistics.median(inside) <= GOAL else "MISSED"
        ratios.append(
            [
                name, summary(mine), summary(theirs), summary(inside, ratio),
                f"{ratio(quartiles[0])}-{ratio(quartiles[2])}", goal,
            ]
        )  # fmt: skip
    head = ["popproxy to Dovecot's GSSAPI", "popproxy us", "Dovecot us", "ratio (from-to)", "quartiles", f"{GOAL:g}"]
    return table(["login", "CPU us (from-to)"], rows) + "\n" + table(head, ratios)


def rounds(site: KerberosSite, count: int, logins: int) -> Iterator[dict[str, Case]]:
    """Measures so many logins of each kind in each round, and yields after it what there is so far.

    Raises LoginFailedError, and TargetError if the proxies turn out not to do the same.
    """
    measured = cases(site)
    for case in measured.values():
        measure(site, case, 100)  # what is made once is made now
    for number in range(count):
        say(f"logins by ticket, round {number + 1} of {count}")
        for case in random.sample(list(measured.values()), len(measured)):
            case.values.append(measure(site, case, logins))
        yield measured
    if not all((target.directory / name).stat().st_size for target, name in site.replay_caches()):
        raise TargetError("one of the proxies keeps no replay cache: they cannot be compared")


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kerberos_logins", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--logins", type=int, default=400, help="of each kind in a round (default: 400)")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        with kerberos_site() as site:
            *_, measured = rounds(site, options.rounds, options.logins)
            where = facts(site.accounting.words, (options.rounds, 0))
    except (CompileError, TargetError, PeerMissingError, LoginFailedError) as error:
        say(str(error))
        return 1
    print(
        f"{where.text()} {options.logins} logins a round, {AT_A_TIME} at a time; {time.monotonic() - started:.0f} s.\n"
    )
    print(report(measured), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
