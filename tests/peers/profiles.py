"""How long the property tests search. Quick and repeatable; ``POPPROXY_EXAMPLES=5000`` searches at random."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_QUIET = (HealthCheck.too_slow, HealthCheck.filter_too_much)

settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile(
    "search",
    max_examples=int(os.environ.get("POPPROXY_EXAMPLES", "5000")),
    deadline=None,
    database=None,
    suppress_health_check=_QUIET,
)


def load() -> None:
    """Choose the profile by the environment."""
    settings.load_profile("search" if "POPPROXY_EXAMPLES" in os.environ else "ci")
