"""Replies: the status line, its response code (RFC 2449 section 8, RFC 3206), making a backend's line fit to be shown.

We announce RESP-CODES and AUTH-RESP-CODE, so every text that begins with "[" must be a code and [AUTH] must mean the
user's credentials and nothing else. A backend promises neither; `clean` makes its lines keep our promise.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from popproxy.errors import RemoteProtocolError

STATUS_LIMIT = 512
"""Longest first line of a reply in octets, CRLF included (RFC 1939 section 3)."""
REPLY_LINE_LIMIT = 8192
"""Longest status line taken from a backend before it counts as broken."""
CODE_LIMIT = 64
"""Longest response code handed on; a longer one might be cut, and a cut one is no code."""

CODES = frozenset({"AUTH", "IN-USE", "LOGIN-DELAY", "SYS/TEMP", "SYS/PERM"})
"""The codes that the proxy itself sends."""

# rchar of RFC 2449 section 8: printable ASCII but "/" and "]"
_CODE = re.compile(rb"\[([!-.0-\\^-~]+(?:/[!-.0-\\^-~]+)*)\] ?")
_STATUS = re.compile(rb"(\+OK|-ERR)(?![A-Za-z0-9])[ \t]*(.*)", re.IGNORECASE | re.DOTALL)
# what may be handed on untouched: upper case, no code, no control character
_CLEAN = re.compile(rb"(?:\+OK|-ERR)(?: (?:[^\x00-\x20\x7f\[][^\x00-\x1f\x7f]*)?)?")
PLAIN_LINE = re.compile(_CLEAN.pattern + rb"\r\n")
"""A whole status line that `clean` would leave as it is, if it is not too long."""
_UNPRINTABLE = re.compile(rb"[\x00-\x1f\x7f]+")


class Status(NamedTuple):
    """A status line: `code` in upper case without brackets, or None; `text` what follows."""

    ok: bool
    code: str | None
    text: bytes


def ok(text: str = "") -> bytes:
    """``+OK text CRLF``."""
    return f"+OK {text}\r\n".encode("ascii", "replace") if text else b"+OK\r\n"


def err(text: str, code: str | None = None) -> bytes:
    """``-ERR [code] text CRLF``. Text without a code must not begin with a bracket."""
    return (f"-ERR [{code}] {text}\r\n" if code else f"-ERR {text}\r\n").encode("ascii", "replace")


def parse_status(line: bytes) -> Status:
    """A status line without its line end. Raises RemoteProtocolError if it is neither +OK nor -ERR."""
    match = _STATUS.fullmatch(line)
    if match is None:
        raise RemoteProtocolError("neither +OK nor -ERR", reason="garbage")
    positive, text = match[1][:1] == b"+", match[2]
    if code := _CODE.match(text):
        return Status(positive, code[1].decode("ascii").upper(), text[code.end() :])
    return Status(positive, None, text)


def clean(line: bytes, status: Status) -> bytes:
    """The backend's status line as the client may see it, CRLF included.

    Verbatim where it can be. Otherwise: keyword in upper case, control characters as spaces, a bracket that opens no
    response code as a parenthesis, [AUTH] dropped (after the login nothing may carry it), cut to 512 octets.
    """
    if len(line) <= STATUS_LIMIT - 2 and _CLEAN.fullmatch(line):
        return line + b"\r\n"
    head = b"+OK" if status.ok else b"-ERR"
    text = _UNPRINTABLE.sub(b" ", status.text).strip()
    if status.code and len(status.code) <= CODE_LIMIT and status.code.partition("/")[0] != "AUTH":
        text = b"[" + status.code.encode() + b"] " + text
    elif text.startswith(b"["):
        text = b"(" + text[1:].replace(b"]", b")", 1)
    return (head + b" " + text).rstrip()[: STATUS_LIMIT - 2] + b"\r\n"
