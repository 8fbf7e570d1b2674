"""The JSON Schema says what the model says."""

from __future__ import annotations

import json
from typing import Any

from popproxy.config.fields import all_fields
from popproxy.config.schema import json_schema


def resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if option.get("type") != "null":
            node = option
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


def field_of(place: str, schema: dict[str, Any]) -> dict[str, Any]:
    node, found = schema, schema
    for step in place.split("."):
        if step == "<name>":
            node = resolved(next(iter(node["patternProperties"].values())), schema)
            continue
        found = node["properties"][step.removesuffix("[]")]
        node = resolved(found, schema)
        if step.endswith("[]"):
            node = resolved(node["items"], schema)
    return found


def test_every_key_of_the_model_is_in_the_schema_with_a_description() -> None:
    schema = json_schema()
    fields = {place: field_of(place, schema) for place, _ in all_fields()}
    silent = [place for place, field in fields.items() if "description" not in {**resolved(field, schema), **field}]
    assert silent == []


def test_no_section_takes_unknown_keys() -> None:
    schema = json_schema()
    assert [name for name, section in schema["$defs"].items() if section["additionalProperties"] is not False] == []
    assert schema["additionalProperties"] is False


def test_defaults_stand_as_in_the_file() -> None:
    schema = json_schema()
    assert field_of("timeouts.idle", schema)["default"] == "10m"
    assert field_of("audit.flush", schema)["default"] == "50ms"
    assert field_of("http.listen", schema)["default"] == "127.0.0.1:9110"
    assert field_of("pools.<name>.capabilities", schema)["default"] == ["TOP", "UIDL"]


def test_names_are_not_repeated_as_titles_and_texts_are_one_line() -> None:
    text = json.dumps(json_schema())
    assert text.count('"title": "') == 1
    assert "\\n" not in text


def test_the_dialect_and_what_is_required() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["listeners", "pools"]
