"""From a file to a `Config`, or to every problem in it at once, in the order of the file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from popproxy.config.document import Document, Place, read
from popproxy.config.finding import Finding, KeyPath, dotted, related
from popproxy.config.messages import tell
from popproxy.config.model import Config
from popproxy.config.rules import check
from popproxy.config.syntax import Unreadable
from popproxy.errors import ConfigError, Problem

MAX_OCTETS = 256 << 10
_ROUNDS = 20
_ABOUT_THE_KEY = {"extra_forbidden"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used. `warnings` are for the administrator, in file order; `path` as it was given."""

    config: Config
    warnings: list[Problem]
    path: Path
    document: Document
    digest: str
    """SHA-256 of the file, in hex."""

    def where(self, key: KeyPath) -> str:
        """``file:line`` of a key, or of what encloses it if it is left to its default."""
        return f"{self.path}:{self.document.place(key)[0]}"


def load(path: Path) -> Config:
    """The configuration in the file `path`. Raises ConfigError with every problem found."""
    return load_file(path).config


def load_file(path: Path) -> Loaded:
    """`load`, with what is allowed but looks wrong as warnings. Raises ConfigError with every problem found."""
    return load_bytes(read_file(path), path)


def load_bytes(raw: bytes, path: Path) -> Loaded:
    """`load_file` for the octets `raw` of the file `path`. Relative file names start at the folder of `path`."""
    name = str(path)
    try:
        document = read(raw)
    except Unreadable as stop:
        raise ConfigError([_problem(name, stop.finding, stop.finding.place or (1, 1), stop.finding.path)]) from None
    attempt = _validate(document, path.absolute().parent)
    findings = [*document.findings, *attempt.findings]
    if attempt.config is not None:
        findings += _agreed(document, attempt, attempt.config)
    located = sorted(
        ((finding.place or document.place(finding.path), finding) for finding in findings), key=lambda pair: pair[0]
    )
    problems = [_problem(name, finding, place, finding.path) for place, finding in located if not finding.warning]
    if problems or attempt.config is None:
        raise ConfigError(problems)
    warnings = [_problem(name, finding, place, finding.path) for place, finding in located if finding.warning]
    return Loaded(attempt.config, warnings, path, document, hashlib.sha256(raw).hexdigest())


class _Attempt(NamedTuple):
    """What validation made of a document: a configuration of its good parts, unless too little was good."""

    config: Config | None
    findings: list[Finding]
    dropped: set[KeyPath]  # values left out because they are wrong
    origin: dict[KeyPath, KeyPath]  # paths in the configuration to paths in the document


def _validate(document: Document, directory: Path) -> _Attempt:
    """Validate; leave out what is wrong and validate again, so that no mistake hides another one."""
    findings: list[Finding] = []
    dropped: set[KeyPath] = set()
    for _ in range(_ROUNDS):
        data, origin = document.plain(dropped)
        try:
            config = Config.model_validate(data, context={"directory": directory})
        except ValidationError as error:
            wrong: set[KeyPath] = set()
            for detail in error.errors(include_url=False):
                path = _original(tuple(step for step in detail["loc"] if step != "[key]"), origin)
                if not any(related(path, other) for other in dropped):
                    of_key = detail["type"] in _ABOUT_THE_KEY or detail["loc"][-1] == "[key]"
                    place = document.place(path, of_key)
                    findings.append(Finding(path, *tell(detail, path), place))
                while path and (path in dropped or path not in document):
                    path = path[:-1]
                wrong.add(path)
            dropped |= wrong
            if () in wrong:
                break
        else:
            return _Attempt(config, findings, dropped, origin)
    return _Attempt(None, findings, dropped, {})


def _agreed(document: Document, attempt: _Attempt, config: Config) -> list[Finding]:
    """The findings of the rules, without those that only follow from what was left out."""
    findings = []
    for finding in check(config):
        path = _original(finding.path, attempt.origin)
        while path not in document and isinstance(path[-1], int):
            path = path[:-1]  # an entry of a default list
        rests_on = [path, *(_original(other, attempt.origin) for other in finding.because)]
        if not any(related(one, other) for one in rests_on for other in attempt.dropped):
            findings.append(Finding(path, finding.what, finding.cure, warning=finding.warning))
    return findings


def _original(path: KeyPath, origin: dict[KeyPath, KeyPath]) -> KeyPath:
    """Where `path` of the validated data stands in the document; the part that is nowhere is kept."""
    known = len(path)
    while path[:known] not in origin:
        known -= 1
    return (*origin[path[:known]], *path[known:])


def _problem(name: str, finding: Finding, place: Place, path: KeyPath) -> Problem:
    return Problem(f"{name}:{place[0]}", _one_line(dotted(path)), _one_line(finding.what), _one_line(finding.cure))


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_file(path: Path) -> bytes:
    """The octets of a configuration. Raises ConfigError."""
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_OCTETS + 1)
    except FileNotFoundError:
        cure = "name the file with -c, or start from config/minimal.yaml"
        raise ConfigError([Problem(name, "", "there is no such file", cure)]) from None
    except IsADirectoryError:
        raise ConfigError(
            [Problem(name, "", "is a directory", f"name a file, for example {path / 'popproxy.yaml'}")]
        ) from None
    except PermissionError:
        cure = "let the user that popproxy is started as read it (chown, chmod)"
        raise ConfigError([Problem(name, "", "may not be read", cure)]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError([Problem(name, "", f"cannot be read: {reason}", "name a readable file with -c")]) from None
    if len(raw) > MAX_OCTETS:
        cure = "name the right file; long lists of users belong in the file of a routing rule"
        raise ConfigError([Problem(name, "", f"is larger than {MAX_OCTETS >> 10} KiB", cure)])
    return raw
