"""Passwords that can be recognised wherever they turn up, and the search for them."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

MARK = "canary-pw-"
"""Every password, vault secret and token in the tests begins so."""


def canary(name: str = "") -> str:
    """A fresh password."""
    return f"{MARK}{name}-{secrets.token_hex(6)}" if name else f"{MARK}{secrets.token_hex(6)}"


def _disguises() -> tuple[bytes, ...]:
    """The mark as it looks in clear, in hexadecimal, and inside base64 at each of the three alignments."""
    mark = MARK.encode()
    whole = base64.b64encode(mark[: len(mark) // 3 * 3])
    shifted = [base64.b64encode(b"\0" * pad + mark)[cut:-4] for pad, cut in ((1, 2), (2, 3))]
    return (mark, mark.hex().encode(), whole, *shifted)


DISGUISES = _disguises()


def leaks(data: bytes) -> list[bytes]:
    """The surroundings of every secret in `data`, at most ten."""
    found: list[bytes] = []
    for disguise in DISGUISES:
        start = data.find(disguise)
        while start >= 0 and len(found) < 10:
            found.append(data[max(0, start - 60) : start + 60])
            start = data.find(disguise, start + 1)
    return found


class Watch:
    """Files and texts that came out of popproxy during the run; searched when they are handed in."""

    def __init__(self) -> None:
        self.searched = 0
        self.found: list[str] = []

    def text(self, origin: str, data: bytes) -> None:
        """Searches what popproxy wrote to `origin`."""
        self.searched += len(data)
        self.found += [f"{origin}: ...{leak!r}..." for leak in leaks(data)]

    def file(self, path: Path) -> None:
        """Searches a file, if it exists."""
        if path.exists():
            self.text(str(path), path.read_bytes())


WATCH = Watch()
"""The one of this test run; `tests/conftest.py` fails the run when it has found something."""
