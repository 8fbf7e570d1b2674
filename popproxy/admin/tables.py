"""Text for a terminal: columns, colours, sizes and times, and nothing in a name that could steer the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, fancy: bool = False) -> list[str]:
    """The lines of a table with columns as wide as they need; what cannot be shown is escaped."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *shown, strict=True)]
    head = styled(_columns([head.upper() for head in heads], widths), BOLD, fancy)
    return [head, *(_columns(row, widths) for row in shown)]


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """A name that a stranger chose must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def styled(text: str, code: str, fancy: bool) -> str:
    """`text` in the colour or weight `code` of a terminal; as it is unless `fancy`."""
    return f"\x1b[{code}m{text}\x1b[0m" if fancy else text


def span(seconds: float) -> str:
    """``42s``, ``3m 5s``, ``2h 1m``."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"


def size(octets: float) -> str:
    """``812``, ``14.2k``, ``3.1M``: octets in powers of 1000."""
    for unit in ("", "k", "M", "G"):
        if octets < 999.5:
            return f"{octets:.0f}" if not unit else f"{octets:.1f}{unit}"
        octets /= 1000
    return f"{octets:.1f}T"
