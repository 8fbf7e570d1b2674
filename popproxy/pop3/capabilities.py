"""CAPA (RFC 2449): reading a backend's list, and the proxy's own, before and after the login.

Ownership decides. What the proxy does itself (USER, SASL, STLS, RESP-CODES, AUTH-RESP-CODE, PIPELINING,
IMPLEMENTATION) it announces itself, and hides the backend's. What only a backend can do (TOP, UIDL, EXPIRE,
LOGIN-DELAY) is announced before the login as far as every possible backend can do it, and after it as this one can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

Capabilities = Mapping[str, tuple[str, ...]]
"""Tag in upper case → its arguments."""

BACKEND_OWNED = ("TOP", "UIDL", "EXPIRE", "LOGIN-DELAY")
"""Tags that a backend may contribute.

UTF8 and LANG are left out: they would have to be answered before the backend is known.
"""
BARE = frozenset({"TOP", "UIDL"})
"""Those of them that need no argument."""
_NUMBER = re.compile(r"[0-9]{1,9}")
_LINE = re.compile(rb"[\x20-\x7e]{1,510}")


def parse(lines: Iterable[bytes | str]) -> dict[str, tuple[str, ...]]:
    """Capabilities from the lines of a CAPA answer, without the status line and the dot.

    Lines that are no text are skipped.
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        raw = line.encode() if isinstance(line, str) else line
        if _LINE.fullmatch(raw) and (words := raw.decode("ascii").split()):
            found[words[0].upper()] = tuple(words[1:])
    return found


def parse_body(body: bytes) -> dict[str, tuple[str, ...]]:
    """Capabilities from the body of a CAPA answer; the final dot may be there or not."""
    return parse(line for line in body.replace(b"\r\n", b"\n").split(b"\n") if line not in (b"", b"."))


def common(pools: Sequence[Capabilities]) -> dict[str, tuple[str, ...]]:
    """What may be promised before the login, when any of `pools` may turn out to be the user's (RFC 2449 section 6).

    A tag must be in all of them. Of LOGIN-DELAY the largest value, of EXPIRE the smallest; ``USER`` is added where
    they differ.
    """
    if not pools:
        return {}
    shared: dict[str, tuple[str, ...]] = {}
    for tag in BACKEND_OWNED:
        if all(tag in pool for pool in pools):
            arguments = {pool[tag] for pool in pools}
            shared[tag] = arguments.pop() if len(arguments) == 1 else _cautious(tag, arguments)
    return {tag: value for tag, value in shared.items() if value or tag in BARE}


def _cautious(tag: str, arguments: set[tuple[str, ...]]) -> tuple[str, ...]:
    values = [words[0].upper() if words else "" for words in arguments]
    numbers = [int(value) for value in values if _NUMBER.fullmatch(value)]
    unknown = len(numbers) + values.count("NEVER") < len(values)
    if tag == "LOGIN-DELAY" and numbers:
        return (str(max(numbers)), "USER")
    if tag == "EXPIRE" and not unknown:
        return (str(min(numbers)), "USER") if numbers else ("NEVER", "USER")
    return ()


def longer_delay(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Of two arguments of LOGIN-DELAY the one that asks for more patience; () is none."""
    return max(one, other, key=lambda words: int(words[0]) if words and _NUMBER.fullmatch(words[0]) else -1)


def after_login(before: Capabilities, backend: Capabilities | None) -> dict[str, tuple[str, ...]]:
    """What the proxy and this backend can do together, never less than was promised `before` (RFC 2449 section 3).

    `before` is the list shown before the login (after TLS where TLS is on), `backend` the backend's own answer, or
    None if it knows no CAPA. STLS is gone: it cannot be had any more.
    """
    merged = {tag: words for tag, words in before.items() if tag != "STLS"}
    implementation = merged.pop("IMPLEMENTATION", None)  # by habit the last line
    for tag in BACKEND_OWNED:
        if backend is not None and tag in backend and (backend[tag] or tag in BARE):
            merged[tag] = backend[tag]
            if tag == "LOGIN-DELAY" and "USER" not in before.get(tag, ()):  # which says that it may still change
                merged[tag] = longer_delay(backend[tag], before.get(tag, ()))
    if implementation is not None:
        merged["IMPLEMENTATION"] = implementation
    return merged


def render(capabilities: Capabilities) -> bytes:
    """A whole CAPA answer, status line and final dot included."""
    lines = (" ".join((tag, *words)) for tag, words in capabilities.items())
    return b"+OK capability list follows\r\n" + "".join(f"{line}\r\n" for line in lines).encode() + b".\r\n"
