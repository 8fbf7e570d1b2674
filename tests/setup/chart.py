"""Writes into the chart's values.schema.json what the configuration's model says: make chart.

python tests/setup/chart.py helm/popproxy/values.schema.json

What stands below "definitions" is made; the rest of the file is written by hand and kept as it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from popproxy.config.schema import draft_07, json_schema


def main() -> None:
    """Writes the file that is named anew."""
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text()))


def render(text: str) -> str:
    """The file `text` with today's definitions."""
    schema = json.loads(text)
    schema["definitions"] = definitions()
    return dump(schema) + "\n"


def definitions() -> dict[str, Any]:
    """The configuration as the definition Config, and those that it needs."""
    schema = draft_07(json_schema())
    inner = schema.pop("definitions")
    # The chart has listeners of its own, and says in a sentence what pools are for.
    config = {word: value for word, value in schema.items() if word not in {"$schema", "title", "required"}}
    return {"Config": config, **inner}


def dump(node: Any, indent: str = "") -> str:
    """JSON with a line for each key, but no further lines for what fits into one."""
    line = json.dumps(node, ensure_ascii=False)
    if len(indent) + len(line) <= 118 or not isinstance(node, dict):
        return line
    if isinstance(node.get("type"), (str, list)) and "properties" not in node:
        return line
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(key)}: {dump(value, inner)}" for key, value in node.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    main()
