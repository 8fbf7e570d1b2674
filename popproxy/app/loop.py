"""The event loop that sessions run on."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on uvloop where there is one, else on asyncio."""
    try:
        uvloop: Any = importlib.import_module("uvloop")  # slow, and not everywhere
    except ImportError:
        return asyncio.run(main)
    result: T = uvloop.run(main)
    return result
