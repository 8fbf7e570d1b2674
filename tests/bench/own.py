"""Scenarios about what only popproxy does: logins that it judges itself, and its records under full load."""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.scenario import Figure, Load, Loader, Measurement, MeasurementError, settle
from tests.bench.setups import APOP, ARGON2ID, OWN, USER
from tests.bench.target import Target

_INTERVAL = 1.0  # seconds between two scrapes


@dataclass(frozen=True)
class Login:
    """Sessions with one message whose login popproxy judges; what they take, and the most memory meanwhile."""

    name: str
    title: str
    options: tuple[str, ...]
    setup: str
    seconds: float = 3
    alone: bool = True
    figures: tuple[Figure, ...] = (
        Figure("CPU", "us"),
        Figure("rate", "sessions/s"),
        Figure("median", "ms"),
        Figure("base", "MiB"),
        Figure("peak", "MiB"),
    )

    def measure(self, loader: Loader, target: Target) -> Measurement:
        time.sleep(0.5)
        group = target.group
        base, before = group.rss_kb(), group.cpu()
        load = loader.run(target, "churn", *self.options, "-u", USER, seconds=self.seconds)
        settle()
        if not load.sessions:
            raise MeasurementError("no session came to its end")
        values = {
            "CPU": (group.cpu() - before).total / 1e3 / load.sessions,
            "rate": load.sessions / load.seconds,
            "median": load.p50_us / 1e3,
            "base": base / 1024,
            "peak": group.peak_rss_kb() / 1024,
        }
        return Measurement(values, load.lost, load.altered)


@dataclass(frozen=True)
class Records:
    """Whole sessions, first without and then with a scrape each second. Every session must be on record, once."""

    name: str = "records"
    title: str = "whole short sessions, 256 at a time, /metrics scraped each second, every record accounted for"
    seconds: float = 5
    alone: bool = True
    setup: str = OWN
    figures: tuple[Figure, ...] = (
        Figure("CPU", "us"),
        Figure("CPU unscraped", "us"),
        Figure("scrape", "ms"),
        Figure("records", "records/s"),
        Figure("p99", "ms"),
        Figure("p99 unscraped", "ms"),
    )

    def measure(self, loader: Loader, target: Target) -> Measurement:
        log = target.directory / "audit.jsonl"
        begun = log.stat().st_size
        unscraped, cpu_before = self._load(loader, target)
        with _Scraper(target.ports.http) as scraper:
            scraped, cpu = self._load(loader, target)
        sessions = unscraped.sessions + scraped.sessions
        count = _accounted_for(log, begun, sessions)
        values = {
            "CPU": cpu / scraped.sessions,
            "CPU unscraped": cpu_before / unscraped.sessions,
            "scrape": statistics.median(scraper.took) * 1e3,
            "records": count / sessions * scraped.sessions / scraped.seconds,
            "p99": scraped.p99_us / 1e3,
            "p99 unscraped": unscraped.p99_us / 1e3,
        }
        return Measurement(values, unscraped.lost + scraped.lost, unscraped.altered + scraped.altered)

    def _load(self, loader: Loader, target: Target) -> tuple[Load, float]:
        """What was loaded, and the CPU time for it in microseconds."""
        before = target.group.cpu()
        load = loader.run(target, "churn", "-c", "256", "-u", USER, seconds=self.seconds)
        settle()
        if not load.sessions:
            raise MeasurementError("no session came to its end")
        return load, (target.group.cpu() - before).total / 1e3


@dataclass
class _Scraper:
    """Asks for the metrics each second, in a thread; `took` are the seconds that the answers took."""

    port: int
    took: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Scraper:
        self._thread = threading.Thread(target=self._scrape)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _scrape(self) -> None:
        while True:
            started = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
                answer.read()
            self.took.append(time.monotonic() - started)
            if self._over.wait(_INTERVAL):
                return


def _accounted_for(log: Path, begun: int, sessions: int) -> int:
    """How many records the audit log has beyond its first `begun` octets.

    Raises MeasurementError unless they are numbered without a gap and tell of so many whole sessions.
    """
    with log.open() as file:
        file.seek(begun)
        records = [json.loads(line) for line in file]
    numbers = [record["event.sequence"] for record in records]
    ends = sum(record["event.action"] == "session_end" and record["event.reason"] == "logout" for record in records)
    if ends != sessions:
        raise MeasurementError(f"{sessions} sessions, but {ends} on record")
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise MeasurementError("a gap in the numbers of the records")
    return len(records)


OWN_SCENARIOS = (
    Login("argon2id", "logins against a users file, argon2id at its full cost", ("-c", "16"), ARGON2ID),
    Login("apop", "logins by APOP against the vault", ("-c", "64", "-a", "apop"), APOP),
    Login("plain", "logins by AUTH PLAIN, passed through", ("-c", "64", "-a", "plain"), OWN),
    Login("user", "logins by USER and PASS, passed through: to compare with", ("-c", "64"), OWN),
    Records(),
)
