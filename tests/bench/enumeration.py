"""``python -m tests.bench.enumeration``: can the answer to a wrong login tell whether the user exists, and where?

Unknown users, wrong passwords and disabled accounts, in a random order, each from an address of its own, against the
defaults of a fresh installation. All bytes must be equal, and the medians of the durations within 5 ms.

The first set-up has a users file (argon2id). In the second, users that are not in it are Dovecot's, which waits two
seconds by itself before it says no: the quick judge must wait for the slow one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from popproxy.auth.hashes import hash_password
from tests.bench.report import table
from tests.peers.canaries import canary
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.guesser import clean_addresses
from tests.peers.process import public_directory
from tests.peers.proxy import proxies, settings

BACKEND = "auth_failure_delay = 2 secs"
"""Dovecot's default. Its penalty for addresses stays off: to it, all these guesses come from popproxy's address."""
GOAL = 0.005
"""Seconds between the medians of two kinds of users."""
AT_A_TIME = 4
"""Logins under way: so few that hashing keeps up."""


@dataclass(frozen=True, slots=True)
class Try:
    """One wrong login, and what came of it."""

    kind: str
    user: str
    how: str
    seconds: float = 0.0
    answer: bytes = b""


async def wrong(port: int, attempt: Try, source: str) -> Try:
    """Send a wrong password; from the last octet of it to the last octet of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        await reader.readuntil(b"\r\n")
        *first, last = _lines(attempt.how, attempt.user.encode(), canary("wrong").encode())
        for line in first:
            writer.write(line + b"\r\n")
            await reader.readuntil(b"\r\n")
        started = time.perf_counter()
        writer.write(last + b"\r\n")
        answer = await reader.readuntil(b"\r\n")
        return Try(attempt.kind, attempt.user, attempt.how, time.perf_counter() - started, answer)
    finally:
        writer.close()


def _lines(how: str, user: bytes, password: bytes) -> list[bytes]:
    if how == "PLAIN":
        return [b"AUTH PLAIN " + base64.b64encode(b"\0" + user + b"\0" + password)]
    if how == "LOGIN":
        return [b"AUTH LOGIN", base64.b64encode(user), base64.b64encode(password)]
    return [b"USER " + user, b"PASS " + password]


async def measure(port: int, tries: list[Try]) -> list[Try]:
    """All of them, a few at a time."""
    waiting, done, clean = iter(tries), [], clean_addresses("127.88")

    async def go_on() -> None:
        for attempt in waiting:
            done.append(await wrong(port, attempt, clean()))

    await asyncio.gather(*(go_on() for _ in range(AT_A_TIME)))
    return done


def plan(kinds: dict[str, str], count: int) -> list[Try]:
    """`count` of each kind, the mechanisms in turn, in a random order that is the same each time."""
    hows = ("USER", "PLAIN", "LOGIN")
    tries = [Try(kind, f"{name}{number}", hows[number % 3]) for kind, name in kinds.items() for number in range(count)]
    random.Random(1939).shuffle(tries)
    return tries


def report(title: str, tries: list[Try]) -> bool:
    """Print it; True if nothing can be told."""
    rows, medians = [], []
    for kind in dict.fromkeys(sorted(attempt.kind for attempt in tries)):
        seconds = sorted(attempt.seconds for attempt in tries if attempt.kind == kind)
        medians.append(statistics.median(seconds))
        figures = (medians[-1], seconds[len(seconds) // 10], seconds[len(seconds) * 9 // 10], seconds[-1])
        rows.append([kind, str(len(seconds)), *(f"{1000 * figure:.1f}" for figure in figures)])
    answers = {attempt.answer for attempt in tries}
    apart = max(medians) - min(medians)
    print(f"\n{title}")
    print(table(["kind", "answers", "median ms", "p10", "p90", "longest"], rows), end="")
    print(f"medians {1000 * apart:.2f} ms apart; answers: {', '.join(map(str, answers))}")
    return apart <= GOAL and len(answers) == 1


@contextlib.contextmanager
def accounts(count: int) -> Iterator[Path]:
    """A users file with `count` users known... and disabled... each; one hash serves all, it is never matched."""
    with public_directory("enumeration") as directory:
        path = directory / "users"
        stored = hash_password(canary().encode())
        lines = [line for n in range(count) for line in (f"known{n}:{stored}\n", f"disabled{n}:!{stored}\n")]
        path.write_text("".join(lines))
        path.chmod(0o644)
        yield path


def configuration(users: Path, judges: list[str], backend: Dovecot) -> dict[str, object]:
    """The defaults."""
    return settings(
        f"127.0.0.1:{backend.port}", listener={"authenticate": judges}, users={"file": str(users)},
        authentication={"failure_delay": "2s"}, logging={"level": "warning", "format": "json"},
    )  # fmt: skip


def main() -> int:
    """0 if nothing can be told from the answers."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.enumeration", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="answers of each kind (200)")
    count = parser.parse_args().count
    theirs = [f"theirs{number}" for number in range(count)]
    good = []
    with contextlib.ExitStack() as stack:
        users = stack.enter_context(accounts(count))
        backend = stack.enter_context(dovecot(users=theirs, extra=BACKEND))
        start = stack.enter_context(proxies())
        for title, judges, kinds in (
            ("users file", ["users"],
             {"unknown user": "nobody", "wrong password": "known", "disabled account": "disabled"}),
            ("users file, then Dovecot", ["users", "passthrough"],
             {"unknown user": "nobody", "wrong password": "known", "wrong password at Dovecot": "theirs",
              "disabled account": "disabled"}),
        ):  # fmt: skip
            proxy = start(configuration(users, judges, backend))
            good.append(report(title, asyncio.run(measure(proxy.port(), plan(kinds, count)))))
    print("nothing can be told" if all(good) else "the answers tell users apart")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
