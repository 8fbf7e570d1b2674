"""What UIDL has told in a session: the unique-ids that the audit record names. Bounded, and cheap until it is asked."""

from __future__ import annotations

LISTING_LIMIT = 256 * 1024
"""Octets of a listing remembered; messages behind that stay without a unique-id."""
SINGLE_LIMIT = 4096
"""Answers to UIDL with a number remembered."""
_LONGEST = 70  # RFC 1939 section 7


class UniqueIds:
    """Message number → unique-id. A listing is kept as it came: most are never looked into."""

    __slots__ = ("_listing", "_single")

    def __init__(self) -> None:
        self._listing = b""
        self._single: dict[int, bytes] = {}

    def take_listing(self, listing: bytes) -> None:
        """The body of an answer to UIDL, perhaps cut off, behind one LF: each number then follows an LF."""
        self._listing = listing[: listing.rfind(b"\n") + 1]  # half a unique-id would name another message

    def take_single(self, text: bytes) -> None:
        """The text of an answer to UIDL with a number: ``number unique-id``."""
        words = text.split(None, 2)
        if len(words) >= 2 and words[0].isdigit() and len(words[0]) <= 10 and len(self._single) < SINGLE_LIMIT:
            self._single[int(words[0])] = words[1][:_LONGEST]

    def find(self, number: int) -> bytes | None:
        """The unique-id of a message, if it has been told."""
        if number in self._single:
            return self._single[number]
        mark = b"\n%d " % number
        at = self._listing.find(mark)
        if at < 0:
            return None
        return self._listing[at + len(mark) :].partition(b"\n")[0].strip()[:_LONGEST]
