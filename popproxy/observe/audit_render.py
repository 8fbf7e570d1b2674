"""Turns values into JSON text for audit records, quickly and without trusting any of them.

Everything comes out as ASCII: control characters, quotes and all that is not ASCII are escaped, so that a record is
always one line and a terminal that shows the log cannot be steered by it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Literal

MAX_FIELD_OCTETS = 256
"""Longest text of a field, in octets of UTF-8; longer ones end in ``...``."""
MAX_RECORD = 1 << 20
"""Octets that no record has: 500 messages (audit_trail.LISTED_PER_RECORD) with the longest unique-ids, every octet of
them escaped, are 0.8 million."""

_ELLIPSIS = "..."


def json_string(text: str) -> str:
    r"""`text` as a JSON string with its quotes, cut to `MAX_FIELD_OCTETS`.

    A lone surrogate, which no JSON reader need accept, is written out as the six characters ``\udc80``.
    """
    if text.isascii() and len(text) <= MAX_FIELD_OCTETS:
        return encode_basestring_ascii(text)
    octets = text[: MAX_FIELD_OCTETS + 1].encode("utf-8", "backslashreplace")
    if len(octets) > MAX_FIELD_OCTETS:
        kept = octets[: MAX_FIELD_OCTETS - len(_ELLIPSIS)].decode("utf-8", "ignore")
        return encode_basestring_ascii(kept + _ELLIPSIS)
    return encode_basestring_ascii(octets.decode())


def json_octets(octets: bytes) -> str:
    r"""Octets from a peer, ASCII by rights (a unique-id, RFC 1939 section 7), as a JSON string; others as ``\x80``."""
    text = octets.decode("ascii", "backslashreplace")
    return encode_basestring_ascii(text) if len(text) <= MAX_FIELD_OCTETS else json_string(text)


class UniqueIds:
    """How records name messages: by the server's unique-ids in ``clear``, ``hashed`` under `key`, or not (``omitted``).

    A hash is the first 16 octets of HMAC-SHA256, in hex.
    """

    __slots__ = ("_key", "_policy")

    def __init__(self, policy: Literal["clear", "hashed", "omitted"] = "clear", key: bytes = b"") -> None:
        self._policy = policy
        self._key = key

    def member(self, name: str, unique_id: bytes) -> str:
        """The JSON member `name`, before or after which a comma must be; nothing if it is left out."""
        if self._policy == "clear":
            return f'"{name}":{json_octets(unique_id)}'
        return f'"{name}":"{self.hashed(unique_id)}"' if self._policy == "hashed" else ""

    def hashed(self, unique_id: bytes) -> str:
        """What stands in records if they hold hashes."""
        return hmac.digest(self._key, unique_id, "sha256")[:16].hex()


def json_value(value: object) -> str:
    """Any value as JSON, for rare records. What JSON does not know is written as its ``str``."""
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return json.dumps(value) if value - value == 0 else "null"  # JSON has no infinity and no NaN
    if isinstance(value, bytes):
        return json_octets(value)
    if isinstance(value, Mapping):
        return "{" + json_fields(value) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(json_value, value)) + "]"
    return json_string(str(value))


def json_fields(fields: Mapping[str, object]) -> str:
    """The members of an object, without its braces."""
    return ",".join(f"{json_string(str(name))}:{json_value(value)}" for name, value in fields.items())
