"""What two configurations differ in, key by key. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin

from popproxy.config.base import Model
from popproxy.config.finding import KeyPath
from popproxy.config.model import Config
from popproxy.types import Address

_PLAIN = (bool, int, float, PurePath, Address)


@dataclass(frozen=True, slots=True)
class Difference:
    """The value at `key` is another one, there for the first time, or there no more.

    `shown` are the old and the new value as they are written in the file, where they tell nothing that is anybody's
    secret, name or address: numbers, durations, sizes, choices, places to listen, files. Otherwise None.
    """

    key: KeyPath
    shown: tuple[object, object] | None = None


def differences(old: Config, new: Config) -> list[Difference]:
    """All of them, in the order of the model. Listeners are the same if their names are."""
    return list(_of_models(old, new, ()))


def _of_models(old: Model, new: Model, path: KeyPath) -> Iterator[Difference]:
    for name, field in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        inner = list(_inside(before, after, (*path, name)))
        if inner:
            yield from inner
        else:
            shown = None
            if all(_harmless(value, field.annotation) for value in (before, after)):
                shown = _written(old, name), _written(new, name)
            yield Difference((*path, name), shown)


def _inside(before: Any, after: Any, path: KeyPath) -> Iterator[Difference]:
    """The differences inside of two values, if they have an inside that can be named."""
    if isinstance(before, Model) and type(before) is type(after):
        yield from _of_models(before, after, path)
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _of_entries(before, {key: key for key in before}, after, {key: key for key in after}, path)
    elif _models(before) and _models(after):
        yield from _of_entries(before, _places(before), after, _places(after), path)


def _of_entries(
    before: Any, old: Mapping[Any, Any], after: Any, new: Mapping[Any, Any], path: KeyPath
) -> Iterator[Difference]:
    """`old` and `new` say where in `before` and `after` an entry is."""
    for entry, place in new.items():
        key = (*path, place)
        if entry not in old:
            yield Difference(key)
        elif before[old[entry]] != after[place]:
            yield from list(_inside(before[old[entry]], after[place], key)) or [Difference(key)]
    yield from (Difference((*path, place)) for entry, place in old.items() if entry not in new)


def _models(values: Any) -> bool:
    return isinstance(values, Sequence) and bool(values) and all(isinstance(value, Model) for value in values)


def _places(values: Sequence[Model]) -> dict[Any, int]:
    """By name, or by number where there are no names."""
    return {getattr(value, "name", number): number for number, value in enumerate(values)}


def _harmless(value: object, annotation: Any) -> bool:
    return value is None or isinstance(value, _PLAIN) or value in _choices(annotation)


def _choices(annotation: Any) -> tuple[object, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for inner in get_args(annotation) for choice in _choices(inner))


def _written(model: Model, name: str) -> object:
    return model.model_dump(mode="json", include={name})[name]
