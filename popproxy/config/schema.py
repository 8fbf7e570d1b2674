"""The configuration as JSON Schema: draft 2020-12 for editors, draft-07 for Helm, which knows nothing newer."""

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


def draft_07(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, as `json_schema` makes it, for readers that know only draft-07 and pass over newer words in silence.

    Definitions stand below ``definitions``. What may be null says so in its type, which makes for clearer complaints
    than a choice between two schemas; and names that fit no pattern are refused. Examples are left out.
    """
    converted: dict[str, Any] = _older(schema)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **converted}


def _older(node: Any, names: bool = False) -> Any:
    """`node` in draft-07; with `names` its keys are names of properties and not words of the schema."""
    if isinstance(node, list):
        return [_older(item) for item in node]
    if not isinstance(node, dict):
        return node
    if names:
        return {name: _older(value) for name, value in node.items()}
    node = {word: value for word, value in node.items() if word not in {"examples", "$schema"}}
    match node.get("anyOf"):
        case [{"type": str(kind)} as only, {"type": "null"}]:
            del node["anyOf"]
            node |= only | {"type": [kind, "null"]}
            if "enum" in only:
                node["enum"] = [*only["enum"], None]
    if "patternProperties" in node:
        node.setdefault("additionalProperties", False)
    if "$ref" in node:
        node["$ref"] = node["$ref"].replace("#/$defs/", "#/definitions/")
    children = {"properties", "patternProperties", "$defs"}
    return {
        "definitions" if word == "$defs" else word: value if word == "default" else _older(value, word in children)
        for word, value in node.items()
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
