"""A file that maps users to pools, a line each: ``user [pool [name at the backend]]``. Read again when it changes."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from popproxy.errors import ConfigError, Problem
from popproxy.state.reread import RereadFile


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: where the user's maildrop is. `backend_user` None: the rule says what the backend calls the user."""

    pool: str
    backend_user: str | None


class RouteFile:
    """The map. Raises ConfigError with all problems of the file; a later, broken version leaves this one in force."""

    def __init__(self, path: Path, pool: str | None, canonical: Callable[[str], str], pools: frozenset[str]) -> None:
        def parse(octets: bytes) -> dict[str, Entry]:
            return _parse(octets, path, pool, canonical, pools)

        try:
            self._file = RereadFile(path, parse, logging.getLogger("popproxy.routing"))
        except OSError as error:
            cure = "create it, or correct routing.rules[].file"
            raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None

    def find(self, user: str) -> Entry | None:
        """The entry of a user in canonical form."""
        if self._file.is_stale():
            self._file.refresh()
        return self._file.value.get(user)


def _parse(
    octets: bytes, path: Path, default: str | None, canonical: Callable[[str], str], pools: frozenset[str]
) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []

    def problem(line: int, what: str, cure: str) -> None:
        problems.append(Problem(f"{path}:{line}", "", what, cure))

    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets[: error.start].count(b"\n") + 1
        raise ConfigError([Problem(f"{path}:{line}", "", "is not UTF-8", "save the file as UTF-8")]) from None
    for number, raw in enumerate(text.splitlines(), 1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        pool = words[1] if len(words) > 1 else default
        user = canonical(words[0])
        if len(words) > 3:
            problem(number, f"{len(words)} words", "write: user pool name-at-the-backend")
        elif pool is None:
            problem(number, f"no pool for {user}", "write a pool behind the user, or give the rule a pool")
        elif pool not in pools:
            near = difflib.get_close_matches(pool, pools, 1) or sorted(pools)
            problem(number, f"there is no pool {pool}", f"did you mean {near[0]}?")
        elif user in entries:
            problem(number, f"{user} stands here twice", "remove one of the lines")
        else:
            entries[user] = Entry(pool, words[2] if len(words) > 2 else None)
    if problems:
        raise ConfigError(problems)
    return entries
