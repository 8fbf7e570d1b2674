"""Do the routing rules lead anywhere, and do the names they make exist?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from popproxy.config.finding import Finding, KeyPath, twice
from popproxy.config.messages import nearest
from popproxy.config.model import Config
from popproxy.config.model_routing import Rule
from popproxy.config.units import quote

_DIGITS = 4
"""Of a group's number: int() raises for thousands of them."""
_PLACEHOLDERS = ("user", "local", "domain")


def check_routing(config: Config) -> Iterator[Finding]:
    """Pools that are named exist, every user can get to one, templates and names make sense."""
    routing = config.routing
    for number, rule in enumerate(routing.rules):
        at: KeyPath = ("routing", "rules", number)
        if rule.pool is not None:
            yield from _pool_exists(config, rule.pool, (*at, "pool"))
        if rule.backend_user is not None:
            yield from _template(rule.backend_user, rule.regex, (*at, "backend_user"))
        yield from _condition(config, rule, at)
    yield from _unreachable(config)
    if routing.default is not None:
        yield from _pool_exists(config, routing.default, ("routing", "default"))
    elif len(config.pools) > 1 and not routing.rules:
        what = f"there are {len(config.pools)} pools, and nothing says which users they serve"
        cure = f"write default: {next(iter(config.pools))} in the section routing, or rules"
        yield Finding(("routing",), what, cure, because=(("routing",),))
    if routing.default_backend_user is not None:
        path: KeyPath = ("routing", "default_backend_user")
        yield from _template(routing.default_backend_user, None, path)
        if config.effective_default_pool is None and (len(config.pools) == 1 or routing.rules):
            cure = f"add default: {next(iter(config.pools))}"
            yield Finding(path, "has no effect without a default pool", cure, because=(("routing", "default"),))


def check_route_directories(config: Config) -> Iterator[Finding]:
    """Directories that are asked where mail is exist, and can say it."""
    at: KeyPath = ("routing", "directories")
    yield from twice(config.routing.directories, at)
    for number, name in enumerate(config.routing.directories):
        directory = config.directories.get(name)
        because: tuple[KeyPath, ...] = (("directories", name),)
        if directory is None:
            meant = nearest(name, config.directories)
            cure = f"did you mean {meant}?" if meant else "add it to the section directories"
            yield Finding((*at, number), f"there is no directory {name}", cure, because=(("directories",), *because))
        elif directory.pam is not None:
            yield Finding((*at, number), "PAM does not know where mail is", "name another directory", because=because)
        elif directory.ldap is not None:
            if not directory.names_places and directory.ldap.attributes.backend_user is None:
                cure = f"add attributes: {{server: mailHost}} to the directory {name}"
                yield Finding((*at, number), f"{name} reads nothing that says where mail is", cure, because=because)
            elif directory.ldap.filter is None and "=" not in (directory.ldap.user_dn or "="):
                cure = f"add account, base and filter to the directory {name}"
                yield Finding((*at, number), f"{name} finds nobody without a password", cure, because=because)


def check_unused_pools(config: Config) -> Iterator[Finding]:
    """Warn about pools that no rule and no default names."""
    routing = config.routing
    if any(rule.file is not None for rule in routing.rules) or (routing.default is None and not routing.rules):
        return  # a file may name any pool; without rules the one pool serves everybody
    if any(directory.names_places for directory in config.directories.values()):
        return
    used = {rule.pool for rule in routing.rules} | {routing.default}
    for name in config.pools:
        if name not in used:
            cure = "name it in a rule or as routing.default, or remove it"
            yield Finding(("pools", name), "no user is sent to this pool", cure, warning=True, because=(("routing",),))


def _pool_exists(config: Config, name: str, path: KeyPath) -> Iterator[Finding]:
    if name in config.pools:
        return
    meant = nearest(name, config.pools)
    names = ", ".join(config.pools)
    cure = f"did you mean {meant}?" if meant else f"add it to the section pools, or name one of {names}"
    yield Finding(path, f"there is no pool {name}", cure, because=(("pools", name),))


def _condition(config: Config, rule: Rule, at: KeyPath) -> Iterator[Finding]:
    if rule.domain is not None and ("@" in rule.domain or not rule.domain.strip()):
        example = rule.domain.rpartition("@")[2].strip() or "example.com"
        yield Finding(
            (*at, "domain"), f"{quote(rule.domain)} is not a domain", f"write it without @, for example {example}"
        )
    if rule.user is not None and not rule.user.strip():
        yield Finding((*at, "user"), "is empty", "write a user name, for example alice@example.com")
    domain = config.authentication.default_domain
    if rule.user is not None and domain and "@" not in rule.user and rule.user.strip():
        what = f"never matches: users without a domain get @{domain} before the rules are tried"
        because = (("authentication", "default_domain"),)
        yield Finding((*at, "user"), what, f"write {rule.user}@{domain}", warning=True, because=because)


def _unreachable(config: Config) -> Iterator[Finding]:
    fold = config.authentication.case == "fold"
    first: dict[tuple[str, str], int] = {}
    for number, rule in enumerate(config.routing.rules):
        for key, value in (("user", rule.user), ("domain", rule.domain), ("regex", rule.regex)):
            if value is None:
                continue
            same = (key, value.lower() if fold and key != "regex" else value)
            if same in first:
                what = f"never matches: routing.rules[{first[same]}] has the same {key} and is tried first"
                yield Finding(("routing", "rules", number, key), what, "remove one of the two")
            first.setdefault(same, number)


def check_domain(config: Config) -> Iterator[Finding]:
    """The domain that is added to bare names."""
    domain = config.authentication.default_domain
    if domain is not None and (not domain.strip() or "@" in domain):
        example = domain.rpartition("@")[2].strip() or "example.com"
        what = f"{quote(domain)} is not a domain"
        yield Finding(("authentication", "default_domain"), what, f"write it without @, for example {example}")


def _template(template: str, regex: str | None, path: KeyPath) -> Iterator[Finding]:
    """Placeholders must be known, and group references must exist in the regular expression."""
    yield from check_placeholders(template, path)
    if regex is None:
        if "\\" in template:
            cure = "write {user}, {local} or {domain}, or match with regex"
            yield Finding(path, "a backslash refers to a group of a regex, and this has none", cure)
        return
    pattern = re.compile(regex)
    for reference, name in re.findall(r"\\(g<([^>]*)>|\d{1,2}|.|$)", template):
        group = name or reference
        if group.isdecimal() and len(group) <= _DIGITS and int(group) <= pattern.groups:
            continue
        if reference == "\\" or (name and name in pattern.groupindex):
            continue
        if not group.isdecimal() and not name:
            yield Finding(
                path, f"\\{reference} is not a group reference", "write \\1 or \\g<name>; \\\\ is a backslash"
            )
            continue
        count = pattern.groups
        known = ", ".join(pattern.groupindex) or (f"\\1 to \\{count}" if count > 1 else "\\1" if count else "none")
        cure = f"put a part of the regex in parentheses, or use one it has ({known})"
        yield Finding(path, f"the regex has no group {group}", cure, because=((*path[:-1], "regex"),))


def check_placeholders(template: str, path: KeyPath) -> Iterator[Finding]:
    """What stands in braces must be known."""
    if any(ord(character) < 32 or ord(character) == 127 for character in template):
        yield Finding(path, "has a control character", "remove it; a user name is printable text")
    for name in re.findall(r"\{([^{}]*)\}", template):
        if name not in _PLACEHOLDERS:
            meant = nearest(name, _PLACEHOLDERS) if name else None
            cure = f"did you mean {{{meant}}}?" if meant else "write {user}, {local} or {domain}"
            yield Finding(path, f"{quote('{' + name + '}')} is not a known placeholder", cure)
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", template)):
        yield Finding(path, "has a brace without its counterpart", "write {user}, {local} or {domain}")
