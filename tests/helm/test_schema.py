"""What the chart says of its values agrees with the model, with its defaults, and with its README."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import yaml

from popproxy.config.schema import draft_07, json_schema
from tests.helm.rendering import CHART
from tests.peers.process import REPOSITORY
from tests.setup.chart import render

SCHEMA = CHART / "values.schema.json"
NEWER = {"$defs", "$anchor", "dependentRequired", "dependentSchemas", "unevaluatedProperties", "prefixItems"} | {
    "unevaluatedItems", "minContains", "maxContains", "$dynamicRef",
}  # fmt: skip
"""Words that draft-07 does not know: Helm 3.10 would pass over them in silence."""


def keys(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from keys(value)
    elif isinstance(node, list):
        for item in node:
            yield from keys(item)


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def places(node: dict[str, Any], before: str = "") -> Iterator[str]:
    """Every value, but for what stands in free maps such as config."""
    for key, value in node.items():
        place = f"{before}{key}"
        yield place
        if isinstance(value, dict) and value and place not in {"config", "stateVolume", "updateStrategy", "secrets"}:
            if place.startswith(("resources", "probes", "metrics.dashboards.labels")) and place != "probes":
                continue
            yield from places(value, f"{place}.")


def test_the_charts_schema_is_made_of_todays_model() -> None:
    text = SCHEMA.read_text()
    assert render(text) == text, "run: make chart"


def test_draft_07_uses_no_newer_words_and_all_its_references_lead_somewhere() -> None:
    schema = draft_07(json_schema())
    assert NEWER.isdisjoint(keys(schema))
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(schema)))
    assert references == {f"#/definitions/{name}" for name in schema["definitions"]}


def test_draft_07_says_of_what_may_be_null_that_it_may() -> None:
    schema = draft_07(json_schema())
    assert schema["definitions"]["TotalAllowance"] == json_schema()["$defs"]["TotalAllowance"]
    assert schema["definitions"]["Audit"]["properties"]["file"]["type"] == ["string", "null"]


def test_every_default_value_is_in_the_schema_and_every_value_of_the_schema_has_a_default() -> None:
    def check(defaults: dict[str, Any], schema: dict[str, Any], place: str) -> None:
        assert defaults.keys() == schema["properties"].keys() - {"global"}, place
        for key, value in defaults.items():
            inner = schema["properties"][key]
            if isinstance(value, dict) and inner.get("properties") and place != "probes.":
                check(value, inner, f"{place}{key}.")

    check(values(), json.loads(SCHEMA.read_text()), "")


def test_the_readme_explains_every_value_and_no_other() -> None:
    table = (CHART / "README.md").read_text().partition("\n## All values\n")[2]
    explained = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    known = set(places(values()))
    leaves = {place for place in known if not any(other.startswith(f"{place}.") for other in known)}
    assert sorted(leaves - set(explained)) == []
    assert sorted(set(explained) - known) == []


def test_the_chart_has_the_programs_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
