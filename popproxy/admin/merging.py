"""One result of a command out of those of several workers.

Rules say how values become one, words by the dotted path of a value (entries of a list have the path of the list):

    sum  max  min  first  any  all     what they say; for numbers, texts and truth values
    rows pool server                   a list of objects: those that agree in these keys become one
    descending seconds                 a list of objects, put in this order

Without a rule numbers are added up, lists put together, objects merged key by key, of texts the first is taken, and a
truth value is true if one is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def merge(results: Sequence[Any], rules: Mapping[str, str], path: str = "") -> Any:
    """`results`, of which there is at least one, as one."""
    rule = rules.get(path, "")
    given = [result for result in results if result is not None]
    if not given:
        return None
    first = given[0]
    word, _, keys = rule.partition(" ")
    match word:
        case "first":
            return first
        case "max":
            return max(given)
        case "min":
            return min(given)
        case "any":
            return any(given)
        case "all":
            return all(given)
    if isinstance(first, dict):
        names = dict.fromkeys(key for result in given for key in result)
        inner = f"{path}." if path else ""
        return {
            name: merge([result[name] for result in given if name in result], rules, inner + name) for name in names
        }
    if isinstance(first, list):
        rows = [row for result in given for row in result]
        if word == "rows":
            return _joined(rows, keys.split(), rules, path)
        if word == "descending":
            rows.sort(key=lambda row: row[keys], reverse=True)
        return rows
    if isinstance(first, bool):
        return any(given)
    return sum(given) if isinstance(first, int | float) else first


def _joined(rows: list[dict[str, Any]], keys: list[str], rules: Mapping[str, str], path: str) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return [merge(group, {**rules, path: ""}, path) for group in groups.values()]
