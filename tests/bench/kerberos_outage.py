"""``python -m tests.bench.kerberos_outage``: what other sessions notice when the KDC is down or answers nothing.

Passwords are judged by the KDC. While some clients try them one after the other, others log in by ticket, and a session
that is logged in says NOOP: first with a healthy KDC, then with one that is stopped, then with one that takes packets
and never answers. The lag is what popproxy's own metric says: how late a timer of its event loop was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.bench.facts import facts
from tests.bench.kerberos_logins import Link, Login, LoginFailedError, by_gssapi, by_kpop
from tests.bench.kerberos_site import USER, KerberosSite, kerberos_site
from tests.bench.report import Row, short, table
from tests.bench.run import say
from tests.bench.target import TargetError
from tests.bench.tools import CompileError
from tests.peers.deaf_kdc import deaf_kdc
from tests.peers.process import PeerMissingError

GOAL = 0.05
"""Seconds: the p99 of the lag, whatever the KDC does."""
PASSWORDS = 16
TICKETS = 4
PAUSE = 0.02
"""Seconds between two logins by ticket of one client, and between two NOOPs: so that the machine is not full."""
PASSWORD_PAUSE = 0.2
"""The same between two passwords, which a KDC that is stopped lets fail at once."""


@dataclass
class Noticed:
    """What the clients saw: seconds for a NOOP, for a login by ticket, and until a password was answered."""

    noop: list[float] = field(default_factory=list)
    ticket: list[float] = field(default_factory=list)
    password: list[float] = field(default_factory=list)
    accepted: int = 0  # passwords
    lag: dict[float, float] = field(default_factory=dict)


async def connect(port: int) -> Link:
    return Link(*await asyncio.open_connection("127.0.0.1", port))


class Load:
    """The clients, until `seconds` are over."""

    def __init__(self, site: KerberosSite, seconds: float) -> None:
        self._site = site
        self._end = time.monotonic() + seconds
        self.noticed = Noticed()

    async def run(self) -> Noticed:
        """All of them. Raises LoginFailedError if a ticket is refused or a password is called wrong."""
        before = lateness(self._site)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._inside())
            for number in range(TICKETS):
                group.create_task(self._tickets(kpop=number % 2 == 0))
            for _ in range(PASSWORDS):
                group.create_task(self._passwords())
        after = lateness(self._site)
        self.noticed.lag = {bound: after[bound] - before[bound] for bound in after}
        return self.noticed

    async def _inside(self) -> None:
        link = await connect(self._site.popproxy.ports.plain)
        await by_gssapi(self._site)(link)
        while time.monotonic() < self._end:
            await asyncio.sleep(PAUSE)
            with timed(self.noticed.noop):
                await link.ok(b"NOOP")
        await link.ok(b"QUIT")
        link.close()

    async def _tickets(self, *, kpop: bool) -> None:
        port = self._site.kpop if kpop else self._site.popproxy.ports.plain
        while time.monotonic() < self._end:
            await asyncio.sleep(PAUSE)
            login: Login = by_kpop(self._site) if kpop else by_gssapi(self._site)
            link = await connect(port)
            with timed(self.noticed.ticket):
                await login(link)
            await link.ok(b"QUIT")
            link.close()

    async def _passwords(self) -> None:
        while time.monotonic() < self._end:
            link = await connect(self._site.popproxy.ports.plain)
            await link.ok()
            await link.ok(f"USER {USER}".encode())
            with timed(self.noticed.password):
                answer = await link.ok(f"PASS {self._site.realm.passwords[USER]}".encode(), b"")
            if not answer.startswith((b"+OK", b"-ERR [SYS/TEMP]")):
                raise LoginFailedError(answer.decode(errors="replace"))
            self.noticed.accepted += answer.startswith(b"+OK")
            link.send(b"QUIT\r\n")
            link.close()
            await asyncio.sleep(PASSWORD_PAUSE)


@contextlib.contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Adds how long it took."""
    started = time.monotonic()
    yield
    seconds.append(time.monotonic() - started)


def lateness(site: KerberosSite) -> dict[float, float]:
    """How often the event loop has been later than the bucket before and at most so late, by upper bound."""
    with urllib.request.urlopen(f"http://127.0.0.1:{site.popproxy.ports.http}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^popproxy_event_loop_lag_seconds_bucket\{le="(.+)"\} (\S+)$', text, flags=re.MULTILINE)
    counts, below = {}, 0.0
    for bound, cumulative in sorted((float(bound), float(value)) for bound, value in found):
        counts[bound] = cumulative - below
        below = cumulative
    return counts


def quantile(counts: Mapping[float, float], part: float) -> float:
    """The upper bound of the bucket that it lies in."""
    wanted, seen = sum(counts.values()) * part, 0.0
    for bound, count in sorted(counts.items()):
        seen += count
        if seen >= wanted:
            return bound
    return float("inf")


def p99(values: list[float]) -> float:
    """Of some values."""
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]


def row(name: str, seen: Noticed) -> Row:
    """One line of the table, in milliseconds and seconds."""
    late = quantile(seen.lag, 0.99)
    return [
        name,
        f"{sum(seen.lag.values()):.0f}",
        *(f"<= {short(quantile(seen.lag, part) * 1e3)}" for part in (0.5, 0.99)),
        "met" if late <= GOAL else "MISSED",
        *(short(value * 1e3) for value in (statistics.median(seen.noop), p99(seen.noop))),
        *(short(value * 1e3) for value in (statistics.median(seen.ticket), p99(seen.ticket))),
        f"{len(seen.ticket)}",
        f"{seen.accepted} of {len(seen.password)}",
        f"{max(seen.password):.1f}",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kerberos_outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for each state of the KDC (default: 20)")
    options = parser.parse_args(arguments)
    rows = []
    try:
        with kerberos_site(authenticate="kerberos", with_dovecot=False) as site:
            for name in ("healthy", "stopped", "deaf", "healthy again"):
                say(f"the KDC is {name}")
                with contextlib.ExitStack() as stack:
                    if not name.startswith("healthy"):
                        site.realm.stop()
                        stack.callback(site.realm.start)
                    if name == "deaf":
                        stack.enter_context(deaf_kdc(site.realm.port))
                    rows.append(row(name, asyncio.run(Load(site, options.seconds).run())))
            where = facts(site.accounting.words, (1, 0))
    except (CompileError, TargetError, PeerMissingError, LoginFailedError) as error:
        say(str(error))
        return 1
    head = [
        "KDC", "samples", "lag p50 ms", "lag p99 ms", f"{GOAL * 1e3:g} ms", "NOOP p50 ms", "p99 ms", "ticket p50 ms",
        "p99 ms", "logins", "passwords accepted", "longest s",
    ]  # fmt: skip
    print(f"{where.text()} {options.seconds:g} s each; passwords have 3 s.\n")
    print(table(head, rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
