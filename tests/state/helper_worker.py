"""What a helper of the tests does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any


def prepare(settings: dict[str, Any]) -> Callable[[dict[str, Any], float], dict[str, Any]]:
    if "refuse" in settings:
        raise ImportError(settings["refuse"])
    prepared_as = os.getuid()

    def answer(question: dict[str, Any], seconds: float) -> dict[str, Any]:
        if "sleep" in question:
            time.sleep(question["sleep"])
        if "wait_for" in question:
            while not os.path.exists(question["wait_for"]):
                time.sleep(0.005)
        if "crash" in question:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "raise" in question:
            raise ValueError(question["raise"])
        return {
            "echo": question, "settings": settings, "seconds": seconds, "pid": os.getpid(), "parent": os.getppid(),
            "uid": os.getuid(), "prepared_as": prepared_as, "text": "x" * question.get("octets", 0),
        }  # fmt: skip

    return answer
