"""Wrong clocks: the environment in which a program believes that it is earlier or later (libfaketime)."""

from __future__ import annotations

from tests.peers.process import require

HOUR = 3600
_LIBRARY = "/usr/$LIB/faketime/libfaketime.so.1"  # the dynamic linker knows what $LIB is


def shifted(seconds: int) -> dict[str, str]:
    """For a program whose clock is to be wrong by so many seconds. What it measures by, and waits for, stays right."""
    require("faketime")
    if not seconds:
        return {}
    return {"LD_PRELOAD": _LIBRARY, "FAKETIME": f"{seconds:+d}", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
