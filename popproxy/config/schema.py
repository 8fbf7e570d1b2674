"""The configuration as JSON Schema (draft 2020-12), for editors and for whoever makes the file by program."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from popproxy.config.base import Model
from popproxy.config.model import Config


def json_schema() -> dict[str, Any]:
    """A schema of ``popproxy.yaml``. Defaults stand in it as they would in the file, with units."""
    schema = Config.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs")
    _clean(schema, Config)
    for name, section in _sections().items():
        _clean(definitions[name], section)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **schema,
        "title": "popproxy configuration",
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }


def _sections() -> dict[str, type[Model]]:
    """The model's classes by name."""
    found: dict[str, type[Model]] = {}

    def visit(section: type[Model]) -> None:
        for inner in section.__subclasses__():
            found[inner.__name__] = inner
            visit(inner)

    visit(Model)
    found.pop(Config.__name__)
    return found


def _clean(schema: dict[str, Any], section: type[Model]) -> None:
    """Drop the titles that only repeat names, write defaults with their units, put each description on one line."""
    schema.pop("title", None)
    schema["description"] = _line(schema.get("description", ""))
    written = _defaults(section)
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if "description" in field:
            field["description"] = _line(field["description"])
        if isinstance(written.get(name), dict):
            field.pop("default", None)  # a section: its keys have their own
        elif name in written:
            field["default"] = written[name]


def _defaults(section: type[Model]) -> dict[str, Any]:
    blank = section.model_construct()
    dumped = blank.model_dump(mode="json", warnings=False)
    return {name: dumped[name] for name, field in section.model_fields.items() if not field.is_required()}


def _line(text: str) -> str:
    return " ".join(text.split())
