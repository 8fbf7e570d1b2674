"""A rehearsal of what replicas share: everything that is done in Redis is done there once, and undone."""

from __future__ import annotations

import secrets
import time

from popproxy.app.checks.finding import Finding, misconfigured, ok, problem
from popproxy.app.shared import read_secrets, redis_store
from popproxy.config.model import Config
from popproxy.errors import ConfigError
from popproxy.observe.metrics import Metrics
from popproxy.state.store import Hold, Make, StoreAway, Take, Told, Unmake

_REACH = "Does this machine reach it? Does it want TLS (rediss://), or has it none (redis://)?"
_CURES = {
    "refused": "start it, or correct url",
    "timeout": f"{_REACH} Is timeout long enough?",
    "lost": _REACH,
    "tls": f"is its certificate good for this name, and ca right? {_REACH}",
    "login": "correct username and password; what the user must be allowed is in config/README.md",
}


async def check_shared(config: Config, *, offline: bool) -> list[Finding]:
    """Findings about the section shared_state."""
    section = config.shared_state
    if section is None:
        return []
    area = f"shared state {section.url}"
    try:
        found = read_secrets("", section)
    except ConfigError as error:
        return misconfigured(area, error)
    if offline:
        return []
    metrics = Metrics([], [])
    store = redis_store(section, found, metrics)
    owner = f"check {secrets.token_hex(8)}"
    try:
        await store.open({})
        before = (await store.exchange(Told(1, ""))).members - 1
        began = time.monotonic()
        await store.execute([Take(owner, (("", 1, 0),)), Make(owner, 60)])
        milliseconds = (time.monotonic() - began) * 1000
        await store.execute([Hold(owner, "", 0), Unmake(owner)])
    except StoreAway as error:
        return [problem(area, str(error), _CURES.get(error.reason, "see Redis's own log"))]
    finally:
        await store.close()
    findings = [ok(area, f"takes what replicas share, in {milliseconds:.1f} ms; {_sharers(before)}")]
    if metrics.shared_state_rejected:
        cure = "give all replicas the same shared_state.key, or this one another prefix"
        findings.append(problem(area, "holds what was written with another key, or by somebody else", cure))
    return findings


def _sharers(others: int) -> str:
    return {0: "nobody shares it yet", 1: "1 process shares it"}.get(others, f"{others} processes share it")
