"""Which pool serves a user, and by what name: the rules of the configuration, tried in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from popproxy.config.model import Config, Rule
from popproxy.routing.route_file import RouteFile
from popproxy.routing.template import compile_template, fields_of


@dataclass(frozen=True, slots=True)
class Route:
    """A decision: `pool`, the user's name there, and the rule that decided, in words for an administrator."""

    pool: str
    backend_user: str
    rule: str


Try = Callable[[str, Mapping[str, str]], Route | None]


class Router:
    """The rules, ready to be asked. Raises ConfigError if a file map cannot be read."""

    def __init__(self, config: Config, canonical: Callable[[str], str]) -> None:
        pools = frozenset(config.pools)
        self._rules = [_rule(number, rule, canonical, pools) for number, rule in enumerate(config.routing.rules)]
        default = config.effective_default_pool
        if default is not None:
            self._rules.append(_by_default(default, config.routing.default_backend_user))

    def find(self, user: str) -> Route | None:
        """The route of a user in canonical form, or None if no rule matches."""
        fields = fields_of(user)
        for rule in self._rules:
            route = rule(user, fields)
            if route is not None:
                return route
        return None


def _rule(number: int, rule: Rule, canonical: Callable[[str], str], pools: frozenset[str]) -> Try:
    name = f"routing.rules[{number}]"
    if rule.file is not None:
        return _by_file(name, rule.file, rule.pool, rule.backend_user, canonical, pools)
    assert rule.pool is not None  # the model asks for it
    fill, pool = compile_template(rule.backend_user or "{user}"), rule.pool
    if rule.regex is not None:
        pattern = re.compile(rule.regex)

        def by_regex(user: str, fields: Mapping[str, str]) -> Route | None:
            match = pattern.fullmatch(user)
            return None if match is None else Route(pool, fill(fields, match), f"{name} regex")

        return by_regex
    if rule.user is not None:
        wanted = canonical(rule.user)
        return lambda user, fields: Route(pool, fill(fields, None), f"{name} user") if user == wanted else None
    domain = (rule.domain or "").lower()
    return lambda _user, fields: (
        Route(pool, fill(fields, None), f"{name} domain") if fields["domain"].lower() == domain else None
    )


def _by_file(
    name: str,
    path: Path,
    pool: str | None,
    template: str | None,
    canonical: Callable[[str], str],
    pools: frozenset[str],
) -> Try:
    routes = RouteFile(path, pool, canonical, pools)
    fill = compile_template(template or "{user}")

    def by_file(user: str, fields: Mapping[str, str]) -> Route | None:
        found = routes.find(user)
        if found is None:
            return None
        return Route(found.pool, found.backend_user or fill(fields, None), f"{name} {path}")

    return by_file


def _by_default(pool: str, template: str | None) -> Try:
    fill = compile_template(template or "{user}")
    return lambda _user, fields: Route(pool, fill(fields, None), "routing.default")
