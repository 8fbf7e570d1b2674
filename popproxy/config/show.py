"""A configuration as YAML again, with units and without secrets."""

from __future__ import annotations

import re
from typing import Any

import yaml

from popproxy.config.model import Config
from popproxy.types import Secret

_USERINFO = re.compile(r"\b(\w{1,20}://)[^/@\s]*@")


def show(config: Config, changed: bool = False) -> str:
    """`config` as YAML text that loads to an equal configuration: all of it, or only what differs from the defaults."""
    values = _masked(config.model_dump(mode="json", exclude_defaults=changed))
    heading = (
        "# What differs from popproxy's defaults.\n" if changed else "# What popproxy runs with, defaults included.\n"
    )
    return heading + yaml.safe_dump(values, sort_keys=False, width=120)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    if isinstance(value, Secret):
        return "****"
    return _USERINFO.sub(r"\1****@", value) if isinstance(value, str) else value
