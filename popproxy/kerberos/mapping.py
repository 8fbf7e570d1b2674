"""Whose maildrop a principal may open. Pure: rules in, an answer with its reasons out.

Nothing is mapped by accident: realms are listed, instances (``alice/admin``) are refused unless they are named, and
regular expressions must match the whole principal. The same rules serve GSSAPI, KPOP and Kerberos passwords.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from popproxy.errors import ConfigError, Problem
from popproxy.types import Step

Case = Literal["fold", "keep"]
Key = tuple[str | int, ...]

_ESCAPES: Final = {"n": "\n", "t": "\t", "b": "\b", "0": "\0"}
_SEPARATORS: Final = frozenset("@/\\")


class MapRefusal(StrEnum):
    """Why a principal has no maildrop: closed set, for the audit record."""

    MALFORMED = "malformed"  # no principal, or characters that no mailbox may have
    REALM = "realm"
    INSTANCE = "instance"
    NO_RULE = "no_rule"


@dataclass(frozen=True, slots=True)
class Mapped:
    """The maildrop, and each step on the way to it."""

    mailbox: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class NotMapped:
    """No maildrop. `steps` ends with what was in the way."""

    reason: MapRefusal
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class RealmRule:
    """A realm whose users may come.

    `domain` is put behind the user's name; without one the mailbox has none. `instances` are those second parts that
    stand for the user (``alice/mail``). With `by_name` False only tables and regular expressions make mailboxes. `key`,
    of any rule, is its place in the configuration, for steps.
    """

    realm: str
    domain: str | None = None
    instances: frozenset[str] = frozenset()
    by_name: bool = True
    key: Key = ()


@dataclass(frozen=True, slots=True)
class RegexRule:
    r"""`pattern` matches the whole of ``user@REALM``; `mailbox` may use its groups as ``\1`` and ``\g<name>``."""

    pattern: re.Pattern[str]
    mailbox: str
    key: Key = ()


@dataclass(frozen=True, slots=True)
class TableRule:
    """Principals by name, instances included. `find` returns the mailbox or None; `name` is the file, for steps.

    `table` is all of it, for looking from a mailbox to its principals.
    """

    name: str
    find: Callable[[str], str | None]
    table: Callable[[], Mapping[str, str]] = dict
    key: Key = ()


Rule = RegexRule | TableRule


class PrincipalMap:
    """The rules of a configuration: listed realms, then tables, regular expressions, and the name itself."""

    def __init__(self, realms: Sequence[RealmRule], rules: Sequence[Rule] = (), *, case: Case = "fold") -> None:
        self._realms = {rule.realm: rule for rule in realms}
        self._rules = tuple(rules)
        self._case = case
        self._backwards: dict[str, tuple[Mapping[str, str], Callable[[str], str], dict[str, list[str]]]] = {}

    def map(self, principal: str) -> Mapped | NotMapped:
        r"""The maildrop of ``alice@REALM``, as libkrb5 prints it (with ``\@`` for an @ in the name)."""
        steps: list[Step] = []

        def refuse(reason: MapRefusal, why: str, key: Key = ()) -> NotMapped:
            return NotMapped(reason, (*steps, Step(f"refused: {why}", key, "refused")))

        parsed = _parse(principal)
        if parsed is None:
            return refuse(MapRefusal.MALFORMED, "not a principal that could have a mailbox")
        user, instance, realm = parsed
        rule = self._realms.get(realm)
        if rule is None:
            listed = ", ".join(self._realms) or "none"
            why = f"realm {_shown(realm)} is not listed (listed: {listed})"
            return refuse(MapRefusal.REALM, why, ("kerberos", "realms"))
        steps.append(Step(f"realm {realm} is listed", rule.key))
        mailbox = self._in_tables(principal, steps)
        if mailbox is None and instance is not None:
            key = (*rule.key, "instances")
            if instance not in rule.instances:
                return refuse(MapRefusal.INSTANCE, f"instance /{instance} is not allowed in realm {realm}", key)
            steps.append(Step(f"instance /{instance} is allowed and stands for {user}", key))
        if mailbox is None:
            mailbox = self._by_regex(f"{user}@{realm}", steps)
        if mailbox is None and rule.by_name:
            mailbox = f"{user}@{rule.domain}" if rule.domain else user
            steps.append(Step(f"by name: {mailbox}", (*rule.key, "domain") if rule.domain else rule.key))
        if mailbox is None:
            key = (*rule.key, "by_name")
            return refuse(MapRefusal.NO_RULE, f"no rule matches, and realm {realm} maps none by name", key)
        if self._case == "fold":
            mailbox = unicodedata.normalize("NFC", mailbox.lower())
        if not mailbox or _has_odd_characters(mailbox):
            return refuse(MapRefusal.MALFORMED, "the mailbox would be empty or have unprintable characters")
        return Mapped(mailbox, tuple(steps))

    def principal_of(self, user: str, canonical: Callable[[str], str]) -> str | None:
        """The rules backwards: who `user`, logged in without Kerberos, is there. None if that cannot be told.

        It is the one principal that a table has for the mailbox, or the one of the same name; and only if the rules,
        forwards, give it this very mailbox. `canonical` brings mailboxes into the form of `user`.
        """
        local = user.rpartition("@")[0] or user
        tables = (rule for rule in self._rules if isinstance(rule, TableRule))
        listed = [principal for rule in tables for principal in self._owners(rule, canonical).get(user, ())]
        if len(listed) > 1:
            return None  # a mailbox of several people
        for principal in (*listed, *(f"{local}@{realm}" for realm in self._realms)):
            mapped = self.map(principal)
            if isinstance(mapped, Mapped) and canonical(mapped.mailbox) == user:
                return principal
        return None

    def _owners(self, rule: TableRule, canonical: Callable[[str], str]) -> Mapping[str, Sequence[str]]:
        """The principals of each mailbox in a table; made once for each version of it, since it may have many lines."""
        table = rule.table()
        kept = self._backwards.get(rule.name)
        if kept is None or kept[0] is not table or kept[1] != canonical:
            owners: dict[str, list[str]] = {}
            for principal, mailbox in table.items():
                owners.setdefault(canonical(mailbox), []).append(principal)
            kept = self._backwards[rule.name] = (table, canonical, owners)
        return kept[2]

    def _in_tables(self, principal: str, steps: list[Step]) -> str | None:
        for rule in self._rules:
            if isinstance(rule, TableRule):
                mailbox = rule.find(principal)
                if mailbox is not None:
                    steps.append(Step(f"table {rule.name}: {mailbox}", rule.key))
                    return mailbox
                steps.append(Step(f"table {rule.name}: no entry", rule.key, "passed"))
        return None

    def _by_regex(self, principal: str, steps: list[Step]) -> str | None:
        for rule in self._rules:
            if isinstance(rule, RegexRule):
                match = rule.pattern.fullmatch(principal)
                if match is not None:
                    mailbox = match.expand(rule.mailbox)
                    steps.append(Step(f"regex {rule.pattern.pattern}: {mailbox}", rule.key))
                    return mailbox
                steps.append(Step(f"regex {rule.pattern.pattern}: no match", rule.key, "passed"))
        return None


def regex_rule(pattern: str, mailbox: str, key: Key = ()) -> RegexRule:
    """A rule from the configuration. Raises ConfigError if pattern and mailbox do not fit together."""
    try:
        compiled = re.compile(pattern)
        compiled.sub(mailbox, "")  # looks at every reference to a group
    except (re.error, IndexError) as error:
        problem = Problem("", "", f"regex {pattern!r} with mailbox {mailbox!r}: {error}", "correct the rule")
        raise ConfigError([problem]) from None
    return RegexRule(compiled, mailbox, key)


def parse_table(octets: bytes, where: str) -> Mapping[str, str]:
    """The lines ``principal mailbox`` of a file; # begins a comment. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    table: dict[str, str] = {}
    for number, raw in enumerate(octets.decode("utf-8", "surrogateescape").splitlines(), 1):
        words = raw.partition("#")[0].split()
        place = f"{where}:{number}"
        if not words:
            continue
        if any("\udc80" <= character <= "\udcff" for character in raw):
            problems.append(Problem(place, "", "is not UTF-8", "save the file as UTF-8"))
        elif len(words) != 2:
            problems.append(Problem(place, "", f"{len(words)} words", "write: principal@REALM mailbox"))
        elif _parse(words[0]) is None:
            problems.append(Problem(place, "", f"{words[0]} is not a principal with its realm", "write user@REALM"))
        elif words[0] in table:
            problems.append(Problem(place, "", f"{words[0]} stands here twice", "remove one of the lines"))
        else:
            table[words[0]] = words[1]
    if problems:
        raise ConfigError(problems)
    return table


def _parse(principal: str) -> tuple[str, str | None, str] | None:
    """User, instance and realm; None for what can be no user's: more parts, or separators inside a part."""
    parts, realm = split_principal(principal)
    if realm is None or not realm or len(parts) > 2 or not all(parts):
        return None
    if any(_has_odd_characters(part) or _SEPARATORS & set(part) for part in (*parts, realm)):
        return None
    return parts[0], parts[1] if len(parts) == 2 else None, realm


def split_principal(principal: str) -> tuple[list[str], str | None]:
    """The parts of the name, and the realm or None; both without the backslashes of krb5_unparse_name."""
    if "\\" not in principal:
        name, at, realm = principal.partition("@")
        return name.split("/"), realm if at else None
    parts = [""]
    at_realm = escaped = False
    for character in principal:
        if escaped:
            parts[-1] += _ESCAPES.get(character, character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "@" and not at_realm:
            at_realm = True
            parts.append("")
        elif character == "/" and not at_realm:
            parts.append("")
        else:
            parts[-1] += character
    if escaped or not at_realm:
        return parts, None
    return parts[:-1], parts[-1]


def _has_odd_characters(text: str) -> bool:
    if text.isascii():
        return not text.isprintable() or " " in text
    return any(unicodedata.category(character)[0] in "CZ" for character in text)


def _shown(text: str) -> str:
    """Safe on a terminal and in a log, and not endless."""
    safe = text.encode("unicode_escape").decode("ascii") if _has_odd_characters(text) else text
    return safe if len(safe) <= 255 else f"{safe[:252]}..."
