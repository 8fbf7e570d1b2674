"""What the status page shows, out of what the commands tell: no user, no client's address."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from popproxy.config.model_listeners import Listener

KEPT = 150
"""Samples of the history."""
SOON = 21 * 86400.0
"""Seconds before its end when a certificate is worth a word."""

Health = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment: sessions at that time, and counters since the start. `at` in seconds since 1970."""

    at: float
    sessions: float
    logins: float
    failures: float
    octets: float

    @classmethod
    def of(cls, at: float, stats: Mapping[str, Any]) -> Sample:
        """Out of what ``stats`` says."""
        logins = stats["logins"]
        failures = logins["failure"] + logins["error"]
        return cls(at, stats["sessions"]["transaction"], logins["success"], failures, sum(stats["octets"].values()))


class History:
    """The latest samples, as if taken every `interval` seconds; where there are fewer, what must have been between."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._samples: deque[Sample] = deque(maxlen=KEPT + 1)

    def take(self, sample: Sample) -> None:
        """Keep it if it is time for one; what was before a clock that has been put back is forgotten."""
        if self._samples and sample.at < self._samples[-1].at:
            self._samples.clear()
        if not self._samples or sample.at - self._samples[-1].at >= self._interval * 0.9:
            self._samples.append(sample)

    def lines(self) -> dict[str, Any]:
        """Sessions at each moment, and rates a second between each two."""
        samples = list(self._even()) if self._samples else []
        pairs = list(pairwise(samples))
        return {
            "interval": self._interval,
            "sessions": [sample.sessions for sample in samples],
            **{name: [_rate(*pair, name) for pair in pairs] for name in ("logins", "failures", "octets")},
        }

    def _even(self) -> Iterator[Sample]:
        """Every `interval` seconds, up to the last sample."""
        times = [sample.at for sample in self._samples]
        for number in range(min(KEPT, round((times[-1] - times[0]) / self._interval)), -1, -1):
            at = times[-1] - number * self._interval
            place = bisect_left(times, at)
            if place == 0:
                yield self._samples[0]
            else:
                yield _between(self._samples[place - 1], self._samples[place], at)


def rates(before: Sample, now: Sample) -> dict[str, float]:
    """By the name of the counter: how much a second."""
    return {name: _rate(before, now, name) for name in ("logins", "failures", "octets")}


def _between(before: Sample, after: Sample, at: float) -> Sample:
    part = (at - before.at) / max(after.at - before.at, 0.001)

    def value(name: str) -> float:
        earlier = float(getattr(before, name))
        return earlier + (float(getattr(after, name)) - earlier) * part

    return Sample(at, round(value("sessions")), value("logins"), value("failures"), value("octets"))


def _rate(before: Sample, now: Sample, name: str) -> float:
    grown = getattr(now, name) - getattr(before, name)
    return max(0.0, round(float(grown / max(now.at - before.at, 0.001)), 2))


def describe(listeners: Sequence[Listener]) -> dict[str, dict[str, Any]]:
    """Addresses and protocol of each listener, by name."""
    tls = {"implicit": " over TLS", "stls": ", STLS", "none": " without TLS"}
    return {
        listener.name: {
            "addresses": [str(address) for address in listener.listen],
            "protocol": ("KPOP" if listener.protocol == "kpop" else "POP3") + tls[listener.tls],
        }
        for listener in listeners
    }


def judge(look: Mapping[str, Any], not_ready: Sequence[str]) -> tuple[Health, str, list[str]]:
    """How it is: in a word, in a line, and everything that is not as it should be, the worst first.

    `look` has ``at``, ``backends``, ``waiting``, ``listeners`` and ``audit``; `not_ready` says why no session can be
    served, if it is so.
    """
    bad = [*not_ready]
    warn: list[str] = []
    if not look["audit"]["healthy"] and not not_ready:
        bad.append("the audit log cannot be written")
    by_pool: dict[str, list[Mapping[str, Any]]] = {}
    for backend in look["backends"]:
        by_pool.setdefault(backend["pool"], []).append(backend)
    for pool, backends in by_pool.items():
        out = [one for one in backends if one["state"] != "up"]
        names = ", ".join(f"{one['server']} ({one['state']})" for one in out)
        if len(out) == len(backends):
            bad.append(f"no server of pool {pool} is up: {names}")
        elif out:
            warn.append(f"pool {pool}: {names}")
    for pool, logins in look["waiting"].items():
        if logins:
            warn.append(f"{logins:.0f} logins wait for a place in pool {pool}")
    for listener in look["listeners"]:
        left = (listener["certificate_expires"] or look["at"] + SOON) - look["at"]
        if left < 0:
            bad.append(f"the certificate of listener {listener['name']} has expired")
        elif left < SOON:
            warn.append(f"the certificate of listener {listener['name']} expires in {left // 86400:.0f} days")
    if look["audit"]["dropped"]:
        warn.append(f"{look['audit']['dropped']:.0f} audit records are lost")
    if not_ready:
        return "bad", "Not ready for new sessions", [*bad, *warn]
    if bad:
        return "bad", "Something is broken", [*bad, *warn]
    return ("warn", "Working, with trouble", warn) if warn else ("ok", "All is well", [])
