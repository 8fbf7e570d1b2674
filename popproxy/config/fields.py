"""Where a key may stand: the model, walked by the paths of the file."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from popproxy.config.base import Model
from popproxy.config.finding import KeyPath
from popproxy.config.model import Config


def bare(annotation: Any) -> Any:
    """`annotation` without Annotated and without ``| None``."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            inner = [part for part in get_args(annotation) if part is not type(None)]
            if len(inner) != 1:
                return annotation
            annotation = inner[0]
        else:
            return annotation


def is_section(annotation: Any) -> bool:
    """Is this one of the model's sections?"""
    return isinstance(annotation, type) and issubclass(annotation, Model)


def type_at(path: KeyPath) -> Any:
    """The bare type of what stands at `path`, or None if nothing may."""
    current: Any = Config
    for step in path:
        if is_section(current):
            field = current.model_fields.get(step)
            if field is None:
                return None
            current = bare(field.annotation)
        elif get_origin(current) in (list, dict):
            current = bare(get_args(current)[-1])
        else:
            return None
    return current


def field_at(path: KeyPath) -> FieldInfo | None:
    """The model's field for the last key in `path`; None for entries of lists and for unknown keys."""
    section: Any = type_at(path[:-1]) if path else None
    return section.model_fields.get(path[-1]) if is_section(section) else None


def all_fields(section: type[Model] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the model with its place: ``listeners[].tls``, ``pools.<name>.servers``."""
    for name, field in section.model_fields.items():
        place = f"{prefix}.{name}" if prefix else name
        yield place, field
        inner = bare(field.annotation)
        while get_origin(inner) in (list, dict):
            place += "[]" if get_origin(inner) is list else ".<name>"
            inner = bare(get_args(inner)[-1])
        if is_section(inner):
            yield from all_fields(inner, place)


@cache
def homes() -> dict[str, tuple[str, ...]]:
    """For every key the sections in which it may stand ("" is the top level)."""
    found: dict[str, list[str]] = {}
    for place, _ in all_fields():
        section, _, key = place.rpartition(".")
        found.setdefault(key, []).append(section)
    return {key: tuple(sections) for key, sections in found.items()}
