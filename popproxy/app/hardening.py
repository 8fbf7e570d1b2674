"""What keeps secrets in memory there, and root's capabilities away from what comes after root."""

from __future__ import annotations

import ctypes
import resource

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_CAPABILITIES = 64
"""More than any kernel knows."""


def keep_memory() -> None:
    """No core dumps, and no look into our memory for other processes of the same user.

    What is forked inherits both, what is executed only the first.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def give_up_capabilities() -> None:
    """For ever, also for programs that would get them when they are executed; ours go with root."""
    for number in range(_CAPABILITIES):
        if not _prctl(_PR_CAPBSET_DROP, number):
            return  # the first that the kernel does not know


def _prctl(option: int, argument: int) -> bool:
    failed: int = ctypes.CDLL(None).prctl(option, ctypes.c_ulong(argument), 0, 0, 0)
    return not failed
