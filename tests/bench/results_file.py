"""A run as a JSON document, to be kept and printed again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.facts import Facts
from tests.bench.scenario import Measurement, Sample


def save(path: Path, facts: Facts, targets: list[str], samples: list[Sample]) -> None:
    """Write it. Raises OSError."""
    document = {"facts": asdict(facts), "targets": targets, "samples": [asdict(sample) for sample in samples]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> tuple[Facts, list[str], list[Sample]]:
    """What `save` has written. Raises OSError and ValueError."""
    document: dict[str, Any] = json.loads(path.read_text())
    try:
        facts = Facts(**{**document["facts"], "rounds": tuple(document["facts"]["rounds"])})
        return facts, document["targets"], [_sample(sample) for sample in document["samples"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a benchmark: {error}") from None


def _sample(kept: dict[str, Any]) -> Sample:
    measurement = kept.pop("measurement")
    return Sample(**kept, measurement=None if measurement is None else Measurement(**measurement))
