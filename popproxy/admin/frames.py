"""Frames of the control socket: four octets of length, the most significant first, then as much JSON in UTF-8.

A request is ``{"command": "penalties list", "arguments": {"everything": true}}``, its answer ``{"result": ...}`` or
``{"error": {"reason": ..., "text": ...}}`` (see `Reason`). Requests on one connection are answered one after the other.

A command that streams (``top``, ``trace``) is answered by any number of frames ``{"event": ...}`` first; what ends it,
if nothing else does, is that whoever asked closes the connection or sends anything.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, Final

from popproxy.errors import PopproxyError, RemoteProtocolError

HEADER: Final = 4
MAX_REQUEST: Final = 64 * 1024
"""Octets of a request's JSON."""
MAX_ANSWER: Final = 64 * 1024 * 1024
"""Octets of an answer's JSON."""


class Reason(StrEnum):
    """Why a command was not carried out."""

    DENIED = "denied"  # whoever asks may not
    UNKNOWN_COMMAND = "unknown_command"
    BAD_ARGUMENTS = "bad_arguments"
    REFUSED = "refused"  # the command itself says no
    INTERNAL = "internal"  # a bug, logged by the server


class CommandFailed(PopproxyError):
    """A command was not carried out; the text is for the person who gave it."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def encode(value: object) -> bytes:
    """One frame. What JSON does not know is written as its ``str``."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    octets = text.encode("utf-8", "surrogatepass")
    return len(octets).to_bytes(HEADER, "big") + octets


def length(header: bytes, limit: int) -> int:
    """Octets that follow `header`. Raises RemoteProtocolError if there are more than `limit`."""
    announced = int.from_bytes(header, "big")
    if announced > limit:
        raise RemoteProtocolError(f"a frame of {announced} octets; at most {limit} are taken")
    return announced


def decode(octets: bytes) -> dict[str, Any]:
    """The object in a frame. Raises RemoteProtocolError if there is none."""
    try:
        value = json.loads(octets)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("a frame does not hold JSON") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("a frame does not hold a JSON object")
    return value
