"""What a check of the environment found."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from popproxy.errors import ConfigError

Level = Literal["problem", "warning", "ok"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing checked: `area` groups ("listener pop3", "pool main"), `text` says what is so, `cure` what to do."""

    level: Level
    area: str
    text: str
    cure: str = ""


def ok(area: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", area, text)


def warning(area: str, text: str, cure: str = "") -> Finding:
    """Works today, but somebody should look."""
    return Finding("warning", area, text, cure)


def problem(area: str, text: str, cure: str = "") -> Finding:
    """`popproxy serve` would not start, or some users could not get their mail."""
    return Finding("problem", area, text, cure)


def unreadable(area: str, path: Path, error: OSError) -> Finding:
    """The problem that `path` cannot be read."""
    if error.errno == errno.ENOENT:
        return problem(area, f"{path} does not exist", "create the file or correct the path")
    if error.errno == errno.EACCES:
        return problem(area, f"{path} may not be read by {_me()}", "run the check as root or correct the permissions")
    return problem(area, f"{path} cannot be read: {error.strerror}", "correct the path")


def misconfigured(area: str, error: ConfigError) -> list[Finding]:
    """The problems of a part that cannot be made from the configuration."""
    return [problem(area, ": ".join(filter(None, (one.where, one.key, one.what))), one.cure) for one in error.problems]


def counted(number: int, noun: str) -> str:
    """``1 user``, ``2 users``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _me() -> str:
    return "root" if os.geteuid() == 0 else f"user id {os.geteuid()}"
