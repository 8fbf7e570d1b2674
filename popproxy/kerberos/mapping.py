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
    """Mailboxes of principals by their names, instances included; `name` is the file, for steps.

    `table` gives what it holds just now: the same mapping as before, unless it has changed.
    """

    name: str
    table: Callable[[], Mapping[str, str]]
    key: Key = ()


Rule = RegexRule | TableRule


class PrincipalMap:
    """The rules of a configuration: listed realms, then tables, regular expressions, and the name itself.

    With `case` fold ALICE is alice for all of them. To the KDC of Active Directory they are one, and it writes into the
    ticket what was asked for: in capitals somebody would get past the line of a table, and on by the name.
    """

    def __init__(self, realms: Sequence[RealmRule], rules: Sequence[Rule] = (), *, case: Case = "fold") -> None:
        self._realms = {rule.realm: rule for rule in realms}
        self._case = case
        self._tables = [_Table(rule, fold=case == "fold") for rule in rules if isinstance(rule, TableRule)]
        flags = re.IGNORECASE if case == "fold" else re.NOFLAG
        self._patterns = [
            (re.compile(rule.pattern.pattern, flags), rule) for rule in rules if isinstance(rule, RegexRule)
        ]

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
        listed = [principal for table in self._tables for principal in table.owners(user, canonical)]
        if len(listed) > 1:
            return None  # a mailbox of several people
        for principal in (*listed, *(f"{local}@{realm}" for realm in self._realms)):
            mapped = self.map(principal)
            if isinstance(mapped, Mapped) and canonical(mapped.mailbox) == user:
                return principal
        return None

    def _in_tables(self, principal: str, steps: list[Step]) -> str | None:
        for table in self._tables:
            mailbox = table.find(principal)
            if mailbox is not None:
                steps.append(Step(f"table {table.rule.name}: {mailbox}", table.rule.key))
                return mailbox
            steps.append(Step(f"table {table.rule.name}: no entry", table.rule.key, "passed"))
        return None

    def _by_regex(self, principal: str, steps: list[Step]) -> str | None:
        for pattern, rule in self._patterns:
            match = pattern.fullmatch(principal)
            if match is not None:
                mailbox = match.expand(rule.mailbox)
                steps.append(Step(f"regex {pattern.pattern}: {mailbox}", rule.key))
                return mailbox
            steps.append(Step(f"regex {pattern.pattern}: no match", rule.key, "passed"))
        return None


class _Table:
    """A table that may be long, and may change: what is looked for in it is made once for each version of it."""

    def __init__(self, rule: TableRule, *, fold: bool) -> None:
        self.rule = rule
        self._fold = fold
        self._folded: tuple[Mapping[str, str], dict[str, str]] | None = None  # the version, and its mailboxes
        self._owners: tuple[Mapping[str, str], Callable[[str], str], dict[str, list[str]]] | None = None

    def find(self, principal: str) -> str | None:
        """The mailbox of a principal: that of its very name, before that of one in other capitals."""
        table = self.rule.table()
        mailbox = table.get(principal)
        if mailbox is not None or not self._fold:
            return mailbox
        if self._folded is None or self._folded[0] is not table:
            lines = reversed(list(table.items()))  # the first one counts
            self._folded = (table, {_folded(name): mailbox for name, mailbox in lines})
        return self._folded[1].get(_folded(principal))

    def owners(self, user: str, canonical: Callable[[str], str]) -> Sequence[str]:
        """The principals whose mailbox is `user`, which is in the form that `canonical` gives."""
        table = self.rule.table()
        kept = self._owners
        if kept is None or kept[0] is not table or kept[1] != canonical:
            owners: dict[str, list[str]] = {}
            for principal, mailbox in table.items():
                owners.setdefault(canonical(mailbox), []).append(principal)
            kept = self._owners = (table, canonical, owners)
        return kept[2].get(user, ())


def _folded(principal: str) -> str:
    """In lower case, but for the realm."""
    name, at, realm = principal.rpartition("@")
    return f"{unicodedata.normalize('NFC', name.lower())}{at}{realm}"


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
