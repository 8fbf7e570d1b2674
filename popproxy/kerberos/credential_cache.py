"""Credentials in users' names, for a short time and in memory only: whoever polls needs the KDC only now and then."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

MARGIN = 60.0
"""Seconds before the end of a ticket from which it is used for no new login."""


class CredentialCache(Generic[V]):
    """At most `size` values, each for `ttl` seconds and never up to the end of its ticket. For many threads.

    A `ttl` or `size` of 0 keeps nothing.
    """

    def __init__(self, ttl: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl = ttl
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()  # with the end of each

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """The value, or None."""
        with self._lock:
            kept = self._values.get(key)
            return None if kept is None or kept[0] <= self._clock() else kept[1]

    def put(self, key: Hashable, value: V, lifetime: float) -> None:
        """Keep a value whose ticket ends in `lifetime` seconds."""
        keep = min(self._ttl, lifetime - MARGIN)
        with self._lock:
            self._values.pop(key, None)
            if keep > 0 and self._size > 0:
                self._values[key] = (self._clock() + keep, value)
                if len(self._values) > self._size:
                    self._values.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        """Keep it no longer."""
        with self._lock:
            self._values.pop(key, None)

    def expire(self) -> None:
        """Forget whatever has been kept long enough, and not only hide it. Call it now and then."""
        now = self._clock()
        with self._lock:
            for key in [key for key, (end, _) in self._values.items() if end <= now]:
                del self._values[key]
