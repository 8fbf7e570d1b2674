"""What to say about a file that is not text, or text that is not YAML."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

import yaml
from yaml.reader import Reader

from popproxy.config.finding import Finding

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Unreadable(Exception):
    """The file cannot be understood to its end; `finding` says where. The loader makes a ConfigError of it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


class _Reading(NamedTuple):
    """How a complaint of the YAML parser is told. `at_start`: point to where the construct began, not broke."""

    pattern: str
    what: str
    cure: str
    at_start: bool = False


_INDENT = "indent it with spaces exactly like the lines it belongs to"
_READINGS = (
    _Reading(r"character '\\t'", "a tab where only spaces may stand", "replace the tab by spaces"),
    _Reading(r"escape", "a backslash in double quotes", "put the text in 'single quotes'"),
    _Reading(
        r"quoted scalar|end of stream", "a quotation mark is never closed", "close it with the mark it began with", True
    ),
    _Reading(r"character '[@`%]' that cannot start", "a text may not begin with @, ` or %", "put the text in 'quotes'"),
    _Reading(r"undefined alias", "a text that begins with * is taken for an alias", "put the text in 'quotes'"),
    _Reading(r"duplicate anchor", "two anchors (&name) have the same name", "rename one of them"),
    _Reading(r"scanning an (alias|anchor)", "* or & begins a text", "put the text in 'quotes'"),
    _Reading(r"flow sequence", "a list that begins with [ is not closed or lacks a comma", "write [one, two]", True),
    _Reading(
        r"flow mapping", "a section that begins with { is not closed or lacks a comma", "write {key: value}", True
    ),
    _Reading(r"could not find expected ':'", "a line without a colon where key: value is expected", "write key: value"),
    _Reading(
        r"mapping values are not allowed", "a colon where none may stand", f"{_INDENT}, or put the text in 'quotes'"
    ),
    _Reading(
        r"expected <block end>|sequence entries are not allowed|block (mapping|sequence)",
        "the indentation is not right",
        _INDENT,
    ),
    _Reading(r"single document", "a second document begins here", "remove the line ---, one file is one configuration"),
    _Reading(r"nested too deeply", "sections or lists are nested too deeply", "remove the surplus [ or {"),
    _Reading(
        r"tag|directive|document start", "not what YAML allows here", "remove the ! or %, or put the text in 'quotes'"
    ),
    _Reading(
        r"block scalar", "the text after | or > is not right", "begin the text on the next line, indented with spaces"
    ),
)


def decode(raw: bytes) -> str:
    """The text of a file. Raises Unreadable unless it is UTF-8 without control characters."""
    if raw.startswith(_UTF16):
        raise Unreadable(Finding((), "the file is UTF-16", "save it as UTF-8", (1, 1)))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = (raw.count(b"\n", 0, error.start) + 1, 1)
        raise Unreadable(
            Finding((), f"octet 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8", place)
        ) from None
    bad = Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        raise Unreadable(
            Finding(
                (),
                f"a control character (U+{ord(bad.group()):04X})",
                "remove it; the file must be plain text",
                (line, column),
            )
        )
    return text


def explain_syntax(error: yaml.MarkedYAMLError, text: str) -> Finding:
    """What the YAML parser complains about, in plain words."""
    complaint = f"{error.context or ''}: {error.problem or ''}"
    for reading in _READINGS:
        if not re.search(reading.pattern, complaint):
            continue
        mark = (
            error.context_mark if reading.at_start and error.context_mark else error.problem_mark or error.context_mark
        )
        break
    else:
        mark = error.problem_mark or error.context_mark
        reading = _Reading(
            "", f"not what YAML allows here ({error.problem})", "correct the line, or put the text in 'quotes'"
        )
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.splitlines() or [""]
    line, column = _last_written(lines, line, column)
    if "mapping values" in complaint and _lacks_colon(lines, line - 1):
        return Finding((), "a line without a colon where key: value is expected", "write key: value", (line - 1, 1))
    if reading.what != _READINGS[0].what and _begins_with_tab(lines, line):
        reading = _READINGS[0]
    return Finding((), reading.what, reading.cure, (line, column))


def _last_written(lines: list[str], line: int, column: int) -> tuple[int, int]:
    """A parser that runs into the end of the file points behind it; people look at the last line that has text."""
    while line > 1 and (line > len(lines) or not lines[line - 1].strip()):
        line, column = line - 1, 1
    return line, column


def _begins_with_tab(lines: list[str], line: int) -> bool:
    return line <= len(lines) and "\t" in _indentation(lines[line - 1])


def _lacks_colon(lines: list[str], line: int) -> bool:
    """Is `line` a bare word, written where the line behind it has its key?"""
    if not 1 <= line < len(lines):
        return False
    bare = lines[line - 1].strip()
    aligned = _indentation(lines[line - 1]) == _indentation(lines[line])
    return aligned and bare != "" and ":" not in bare and bare[0] not in "-#"


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
