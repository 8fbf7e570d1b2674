"""SASLprep (RFC 4013): one spelling for names and passwords before they are hashed or compared.

It is a profile of stringprep (RFC 3454), whose tables are those of Unicode 3.2 for good: the standard library has them.
"""

from __future__ import annotations

import stringprep
import unicodedata

from popproxy.errors import PopproxyError

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class NotPreparable(PopproxyError):
    """The text has a character that SASLprep prohibits, or mixes directions. The message never holds the text."""


def saslprep(text: str, *, stored: bool = False) -> str:
    """The prepared form of `text`. Raises NotPreparable.

    A `stored` string may hold no code point that Unicode 3.2 has not assigned; a query may (RFC 3454 section 7).
    """
    if text.isascii():
        if not text.isprintable():
            raise NotPreparable("a control character")
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for character in prepared:
        if any(prohibits(character) for prohibits in _PROHIBITED):
            raise NotPreparable("a character that SASLprep prohibits")
        if stored and stringprep.in_table_a1(character):
            raise NotPreparable("a character that Unicode 3.2 does not know")
    _check_directions(prepared)
    return prepared


def _check_directions(text: str) -> None:
    """RFC 3454 section 6: right-to-left text begins and ends so, and has no left-to-right character."""
    if not any(map(stringprep.in_table_d1, text)):
        return
    if any(map(stringprep.in_table_d2, text)):
        raise NotPreparable("characters of both directions")
    if not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])):
        raise NotPreparable("right-to-left text that does not begin and end so")
