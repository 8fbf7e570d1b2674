"""What commands print: JSON for programs, short lists for people, colours on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TextIO

from popproxy.admin.tables import printable, span, styled, table
from popproxy.app.checks.finding import counted

__all__ = ["print_findings", "print_json", "print_lines", "print_table", "printable", "span", "styled", "summary"]


class Finding(Protocol):
    """What `findings` prints (see popproxy.app.checks.finding)."""

    @property
    def level(self) -> str:
        """``problem``, ``warning`` or ``ok``."""
        ...

    @property
    def area(self) -> str:
        """What the finding is about."""
        ...

    @property
    def text(self) -> str:
        """What was found."""
        ...

    @property
    def cure(self) -> str:
        """What to do about it, or nothing."""
        ...


_SIGNS = {"ok": ("\u2713", "32"), "warning": ("!", "33"), "problem": ("\u2717", "31")}


def print_json(value: Any) -> None:
    """`value` as indented JSON on standard output."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # half a character in a name, or a terminal that is not UTF-8
        text = json.dumps(value, indent=2, default=str)
    print(text)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], stream: TextIO | None = None) -> None:
    """`rows` under `heads` in columns as wide as they need; what cannot be shown is escaped."""
    stream = stream or sys.stdout
    print("\n".join(table(heads, rows, fancy=stream.isatty())), file=stream)


def print_lines(lines: Iterable[str]) -> None:
    """What is for people, on standard output."""
    print("\n".join(lines))


def print_findings(findings: Sequence[Finding], stream: TextIO | None = None) -> None:
    """`findings` grouped by area, in the order of their first appearance."""
    stream = stream or sys.stdout
    fancy = stream.isatty()
    for area in dict.fromkeys(finding.area for finding in findings):
        print(styled(area, "1", fancy), file=stream)
        for finding in findings:
            if finding.area == area:
                print("\n".join(_lines(finding, fancy)), file=stream)
    print(f"\n{summary(findings)}", file=stream)


def summary(findings: Iterable[Finding]) -> str:
    """How many of each level, in words."""
    levels = [finding.level for finding in findings]
    problems, warnings = levels.count("problem"), levels.count("warning")
    if not problems and not warnings:
        return "Everything is in order."
    return f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}."


def _lines(finding: Finding, fancy: bool) -> list[str]:
    sign, colour = _SIGNS[finding.level]
    mark = styled(f"{sign} {finding.level:<7}", colour, True) if fancy else f"{finding.level:<7}"
    lines = [f"  {mark}  {finding.text}"]
    if finding.cure:
        lines.append(f"  {' ' * (9 if fancy else 7)}  cure: {finding.cure}")
    return lines


def _count(number: int, noun: str) -> str:
    return counted(number, noun) if number else f"no {noun}s"
