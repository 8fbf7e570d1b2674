"""A YAML text as a tree that remembers where everything stands.

Scalars stay the text that was written: the model decides which of them is a number or a boolean, so ``no``, ``1.2``
and ``22:22`` never turn into something else. Only an empty value, ``~`` and ``null`` are None. Nothing in the text can
make the tree larger than `MAX_VALUES` or deeper than `MAX_DEPTH`, and no tag is obeyed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from popproxy.config.finding import Finding, KeyPath, dotted
from popproxy.config.syntax import Unreadable, decode, explain_syntax
from popproxy.config.units import quote

MAX_DEPTH = 40
MAX_VALUES = 20_000
_NULL = {"", "~", "null", "Null", "NULL"}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}

Place: TypeAlias = tuple[int, int]
Plain: TypeAlias = "str | list[Plain] | dict[str, Plain] | None"


@dataclass(slots=True)
class Entry:
    """One value. `place` is where to point for it, `key_place` where its key stands; lines and columns from 1."""

    value: str | list[Entry] | dict[str, Entry] | None
    place: Place
    key_place: Place


@dataclass(slots=True)
class Document:
    """What `read` made of a text. `findings` are faults that did not stop the reading."""

    root: Entry
    findings: list[Finding] = field(default_factory=list)

    def place(self, path: KeyPath, of_key: bool = False) -> Place:
        """Where `path` stands, or what encloses it if it is not there."""
        entry = self.root
        for depth, step in enumerate(path):
            inner = _child(entry, step)
            if inner is None:
                return entry.key_place if depth else entry.place
            entry = inner
        return entry.key_place if of_key else entry.place

    def __contains__(self, path: KeyPath) -> bool:
        entry: Entry | None = self.root
        for step in path:
            entry = _child(entry, step) if entry else None
        return entry is not None

    def plain(self, without: set[KeyPath]) -> tuple[Plain, dict[KeyPath, KeyPath]]:
        """The bare values, `without` some, and for each path in them the path in this document."""
        origin: dict[KeyPath, KeyPath] = {}

        def bare(entry: Entry, new: KeyPath, old: KeyPath) -> Plain:
            origin[new] = old
            if isinstance(entry.value, dict):
                return {
                    key: bare(inner, (*new, key), (*old, key))
                    for key, inner in entry.value.items()
                    if (*old, key) not in without
                }
            if isinstance(entry.value, list):
                kept = [(number, inner) for number, inner in enumerate(entry.value) if (*old, number) not in without]
                return [bare(inner, (*new, index), (*old, number)) for index, (number, inner) in enumerate(kept)]
            return entry.value

        return bare(self.root, (), ()), origin


def _child(entry: Entry, step: str | int) -> Entry | None:
    if isinstance(entry.value, dict) and isinstance(step, str):
        return entry.value.get(step)
    if isinstance(entry.value, list) and isinstance(step, int) and step < len(entry.value):
        return entry.value[step]
    return None


def read(raw: bytes) -> Document:
    """The tree of a file's octets. Raises Unreadable where the text cannot be understood to its end."""
    text = decode(raw)
    composer = _Composer(text)
    try:
        node = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise Unreadable(explain_syntax(error, text)) from None
    finally:
        composer.dispose()
    if node is None or (isinstance(node, ScalarNode) and node.style is None and node.value in _NULL):
        raise Unreadable(
            Finding(
                (), "the file is empty", "begin with the sections listeners and pools (see config/minimal.yaml)", (1, 1)
            )
        )
    if not isinstance(node, MappingNode):
        raise Unreadable(
            Finding(
                (),
                "the file is not made of sections",
                "write for example 'listeners:' at the start of a line",
                _mark(node),
            )
        )
    return _Builder().document(node)


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to the tree of nodes, with a bound on the depth and without guessing types."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def dispose(self) -> None:
        Parser.dispose(self)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Builder:
    """Turns nodes into entries, expanding aliases and merge keys."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._open: list[Node] = []  # the collections that enclose the present one
        self._values = 0  # how many entries were made

    def document(self, node: MappingNode) -> Document:
        root = self._entry(node, (), _mark(node))
        return Document(root, self._findings)

    def _entry(self, node: Node, path: KeyPath, key_place: Place) -> Entry:
        self._values += 1
        if self._values > MAX_VALUES:
            raise Unreadable(
                Finding(
                    path,
                    f"the file makes more than {MAX_VALUES} values",
                    "write fewer aliases (*name) or shorter lists",
                    key_place,
                )
            )
        if node in self._open:
            raise Unreadable(
                Finding(path, "an alias stands inside what it repeats", "write the value itself", key_place)
            )
        if node.tag not in _PLAIN_TAGS:
            self._say(
                path, _mark(node), f"the tag {quote(_tag(node))} is not understood", "remove it, values need no tag"
            )
        if isinstance(node, ScalarNode):
            empty = node.style is None and node.value in _NULL
            return Entry(None if empty else node.value, key_place if node.value == "" else _mark(node), key_place)
        self._open.append(node)
        value: list[Entry] | dict[str, Entry]
        if isinstance(node, SequenceNode):
            value = [self._entry(item, (*path, number), _mark(item)) for number, item in enumerate(node.value)]
        else:
            value = self._mapping(node, path)
        self._open.pop()
        return Entry(value, key_place, key_place)

    def _mapping(self, node: Node, path: KeyPath) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._say(path, _mark(key), "a key is a list or a section", "write a plain word before the colon")
            elif key.value == "<<" and key.style is None:
                for source in self._merge_sources(value, path):
                    merged = {**self._mapping_inside(source, path), **merged}
            elif key.style is None and key.value in _NULL:
                self._say(path, _mark(key), "a key is missing before the colon", "write key: value")
            elif key.value in entries:
                first = entries[key.value].key_place[0]
                self._say(
                    (*path, key.value), _mark(key), f"stands here again after line {first}", "keep one of the two"
                )
            else:
                entries[key.value] = self._entry(value, (*path, key.value), _mark(key))
        return {**entries, **{key: entry for key, entry in merged.items() if key not in entries}}

    def _mapping_inside(self, node: Node, path: KeyPath) -> dict[str, Entry]:
        entry = self._entry(node, path, _mark(node))
        return entry.value if isinstance(entry.value, dict) else {}

    def _merge_sources(self, node: Node, path: KeyPath) -> Iterator[Node]:
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if isinstance(source, MappingNode):
                yield source
            else:
                self._say((*path, "<<"), _mark(source), "merges what is not a section", "write <<: *name of a section")

    def _say(self, path: KeyPath, place: Place, what: str, cure: str) -> None:
        self._findings.append(Finding(path, what, cure, place))


def _mark(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _tag(node: Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


__all__ = ["Document", "Entry", "Place", "Plain", "dotted", "read"]
