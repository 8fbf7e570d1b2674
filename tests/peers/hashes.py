"""Password hashes that cost nothing."""

from __future__ import annotations

import base64
import hashlib


def ssha512(password: str) -> str:
    """A fast hash of a password, as it stands in a users file."""
    salt = b"saltsalt"
    digest = hashlib.sha512(password.encode() + salt).digest()
    return "{SSHA512}" + base64.b64encode(digest + salt).decode()
