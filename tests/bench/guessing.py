"""``python -m tests.bench.guessing``: how many passwords a guesser gets looked at, here and by Dovecot.

Both run with the defaults of a fresh installation. popproxy checks passwords by argon2id and logs in at a Dovecot; the
Dovecot beside it is asked by the same guessers at the same time. What is counted is what the server says about the
password: an answer without [SYS/TEMP], [IN-USE] or the like.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from popproxy.auth.hashes import hash_password
from tests.bench.report import table
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.guesser import Guesser, clean_addresses, rightful
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, proxies, settings
from tests.session.rig import users_file

STOCK = """
auth_failure_delay = 2 secs
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0600
  }
}
"""
"""Undoes what `tests/peers/dovecot.py` switches off so that tests need not wait."""

USER = "alice"
BY_ONE = 20
"""Guesses of one address that do not count: everybody may be wrong sometimes."""
EVERY = 1.0
"""Seconds between two logins of the user himself, each from an address that nobody has used before."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who guesses at whom, and how many a minute are too many."""

    title: str
    users: Sequence[str]
    sources: Sequence[str]
    goal: int
    free: int
    """Guesses at the beginning that do not count."""


SCENARIOS = (
    Scenario(
        "one address, 16 at a time, many users", [f"user{n}" for n in range(5000)], ["127.0.0.9"] * 16, 30, BY_ONE
    ),
    Scenario("one address, 16 at a time, one user", [USER], ["127.0.0.9"] * 16, 30, BY_ONE),
    Scenario("50 addresses, one user", [USER], [f"127.0.1.{n}" for n in range(1, 51)], 10, 50),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One server under one scenario. `minutes` are the guesses looked at, minute by minute."""

    server: str
    minutes: list[int]
    refused: int
    logins: list[float]
    """Seconds that each login of the user himself took."""
    failed: int
    """Logins of the user himself that were refused."""


async def attack(server: str, port: int, scenario: Scenario, minutes: int, password: str) -> Result:
    """Guess for so many minutes, and let the user log in meanwhile."""
    guesser = Guesser(port, scenario.users, scenario.sources)
    guessing = asyncio.create_task(guesser.run(60.0 * minutes))
    clean, logins, failed = clean_addresses(), [], 0
    while not guessing.done():
        try:
            reply, took = await rightful(port, USER, password, clean())
        except (OSError, EOFError, TimeoutError) as error:
            reply, took = repr(error).encode(), 60.0
        logins.append(took)
        if not reply.startswith(b"+OK"):
            failed += 1
            print(
                f"{server}, {scenario.title}: the user was told {reply.decode('ascii', 'replace').strip()}", flush=True
            )
        await asyncio.sleep(EVERY)
    await guessing
    counted = [guesser.looked_at(60.0 * minute, 60.0 * (minute + 1)) for minute in range(minutes)]
    assert guesser.succeeded == 0, "a guess was right"
    return Result(server, counted, len(guesser.answers) - sum(counted), logins, failed)


async def both(scenario: Scenario, minutes: int, proxy: Proxy, backend: Dovecot, other: Dovecot) -> list[Result]:
    """The same at the same time."""
    attacks = (
        attack("popproxy", proxy.port(), scenario, minutes, backend.users[USER]),
        attack("Dovecot", other.port, scenario, minutes, other.users[USER]),
    )
    return list(await asyncio.gather(*attacks))


def rows(scenario: Scenario, results: Sequence[Result]) -> list[list[str]]:
    """For people: what was looked at, and what the user himself noticed."""
    found = []
    for result in results:
        total, minutes = sum(result.minutes), len(result.minutes)
        rate = max(0, total - scenario.free) / minutes
        ordered = sorted(result.logins)
        found.append([
            scenario.title, result.server, " ".join(map(str, result.minutes)), f"{rate:.1f}", str(scenario.goal),
            str(result.refused), f"{len(ordered) - result.failed}/{len(ordered)}",
            f"{1000 * statistics.median(ordered):.0f}", f"{1000 * ordered[int(0.99 * (len(ordered) - 1))]:.0f}",
        ])  # fmt: skip
    return found


def main() -> int:
    """Run all scenarios, or those whose number is given. 1 if popproxy misses a goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guessing", description=__doc__)
    parser.add_argument("--minutes", type=int, default=5, help="for each scenario (5)")
    parser.add_argument("--only", type=int, action="append", choices=range(1, len(SCENARIOS) + 1), metavar="N")
    parser.add_argument("--quick-hash", action="store_true", help="SSHA512 instead of argon2id: popproxy's own time")
    options = parser.parse_args()
    chosen = [SCENARIOS[number - 1] for number in options.only or range(1, len(SCENARIOS) + 1)]
    lines: list[list[str]] = []
    missed = []
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(dovecot(users=(USER,)))
        directory = stack.enter_context(public_directory("guessing"))
        start = stack.enter_context(proxies())
        for scenario in chosen:  # each begins with nothing counted
            other = stack.enter_context(dovecot(users=(USER,), extra=STOCK))
            proxy = start(_configuration(directory, backend, options.quick_hash))
            results = asyncio.run(both(scenario, options.minutes, proxy, backend, other))
            lines += rows(scenario, results)
            ours = results[0]
            rate = max(0, sum(ours.minutes) - scenario.free) / options.minutes
            late = sorted(ours.logins)[int(0.99 * (len(ours.logins) - 1))]
            if rate > scenario.goal or ours.failed or late > 1.0:
                missed.append(scenario.title)
    heads = [
        "scenario", "server", "looked at, by minute", "a minute beyond the free", "goal", "refused",
        "user gets in", "median ms", "p99 ms",
    ]  # fmt: skip
    print(table(heads, lines))
    print("every goal is met" if not missed else f"goals missed: {', '.join(missed)}")
    return 1 if missed else 0


def _configuration(directory: Path, backend: Dovecot, quick_hash: bool) -> dict[str, object]:
    """The defaults, whatever the rig for tests would set."""
    users, password = directory / "users", backend.users[USER]
    if quick_hash:
        users_file(directory, **{USER: password})
    else:
        users.write_text(f"{USER}:{hash_password(password.encode())}\n")
    users.chmod(0o644)
    return settings(
        f"127.0.0.1:{backend.port}",
        listener={"authenticate": ["users"]},
        users={"file": str(users)},
        authentication={"failure_delay": "2s"},
        limits={"connections_per_address": 100, "sessions_per_user": 20, "sessions_per_user_and_address": 10},
        logging={"level": "warning", "format": "json"},
    )


if __name__ == "__main__":
    raise SystemExit(main())
