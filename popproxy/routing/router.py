"""Which pool serves a user, and by what name: the rules of the configuration, tried in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from popproxy.backend.pool import DEFAULT_PORTS
from popproxy.config.model import Config
from popproxy.config.model_routing import Rule
from popproxy.config.units import parse_address, quote
from popproxy.directories.placeholders import fields_of
from popproxy.errors import PopproxyError
from popproxy.routing.route_file import RouteFile
from popproxy.routing.template import Fill, compile_template
from popproxy.state.orders import Move
from popproxy.types import Address, Location, Step


@dataclass(frozen=True, slots=True)
class Route:
    """A decision: `pool`, the user's name there, and the server of it that a directory has named."""

    pool: str
    backend_user: str
    server: Address | None = None


class Misplaced(PopproxyError):
    """The user's mail is said to be where no pool is; `cure` says what to do."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what)
        self.cure = cure


Try = Callable[[str, Mapping[str, str]], Route | None]


@dataclass(frozen=True, slots=True)
class _Rule:
    """`attempt` decides; `what` and `key` (its place in the configuration) are for people."""

    what: str
    key: tuple[str | int, ...]
    attempt: Try


class Router:
    """The rules, ready to be asked. Raises ConfigError if a file map cannot be read."""

    def __init__(self, config: Config, canonical: Callable[[str], str]) -> None:
        pools = self._pools = frozenset(config.pools)
        self._recorded = frozenset(name for name, pool in config.pools.items() if pool.srv is not None)
        self._servers: list[tuple[Address | None, str]] = [
            (Address(server.host, server.port or DEFAULT_PORTS[pool.tls]), name)
            for name, pool in config.pools.items()
            for server in pool.servers
        ]
        self._rules = [_rule(number, rule, canonical, pools) for number, rule in enumerate(config.routing.rules)]
        default = config.effective_default_pool
        if default is not None:
            key = ("pools", default) if config.routing.default is None else ("routing", "default")
            self._rules.append(_by_default(default, config.routing.default_backend_user, key))

    def find(self, user: str, location: Location | None = None, move: Move | None = None) -> Route | None:
        """The route of a user in canonical form, or None if no rule matches.

        Where an operator has moved the user goes before what a directory has said of the place, and that before all
        rules. Raises Misplaced for a place that is not configured.
        """
        if move is not None:
            return self._find_move(user, location, move)
        if location is not None and (location.pool is not None or location.server is not None):
            return self._find_location(user, location)
        fields = fields_of(user)
        for rule in self._rules:
            route = rule.attempt(user, fields)
            if route is not None:
                if location is not None and location.backend_user is not None:
                    return replace(route, backend_user=location.backend_user)
                return route
        return None

    def steps(self, user: str) -> list[Step]:
        """What `find` does for a user, rule by rule up to the one that decides."""
        fields = fields_of(user)
        steps: list[Step] = []
        for rule in self._rules:
            route = rule.attempt(user, fields)
            if route is not None:
                return [*steps, Step(f"{rule.what}: pool {route.pool}, there {route.backend_user}", rule.key)]
            steps.append(Step(f"{rule.what}: no match", rule.key, "passed"))
        why = "refused: no rule matches, and there is no default"
        return [*steps, Step(why, ("routing",), "refused")]

    def _find_move(self, user: str, location: Location | None, move: Move) -> Route:
        server = None if move.server is None else parse_address(move.server)
        listed = server is None or move.pool in self._recorded or (server, move.pool) in self._servers
        if move.pool not in self._pools or not listed:
            place = f"pool {move.pool}" if server is None else f"server {server} in pool {move.pool}"
            what = f"an operator has moved the user to a place that no pool has: {place}"
            raise Misplaced(what, "add it to the section pools, or move the user elsewhere (popproxy move)")
        name = move.backend_user or (None if location is None else location.backend_user)
        if name is None:
            route = self.find(user)
            name = user if route is None else route.backend_user
        return Route(move.pool, name, server)

    def _find_location(self, user: str, location: Location) -> Route:
        wanted = location.server
        places = self._servers if wanted is not None else [(None, name) for name in self._pools]
        possible = [(server, name) for server, name in places if location.pool in (None, name)]
        found = next((one for one in possible if wanted is None or _is(one[0], wanted)), None)
        if found is None:
            named = [f"pool {quote(location.pool)}"] if location.pool is not None else []
            named += [f"server {wanted}"] if wanted is not None else []
            what = f"the directory names a place that no pool has: {', '.join(named)}"
            raise Misplaced(what, "add it to the section pools")
        server, pool = found
        return Route(pool, location.backend_user or user, server)


def _is(configured: Address | None, wanted: Address) -> bool:
    """The same server? Without a port (0) whatever port."""
    if configured is None:
        return False
    same_host = configured.host.rstrip(".").lower() == wanted.host.rstrip(".").lower()
    return same_host and wanted.port in (0, configured.port)


def _rule(number: int, rule: Rule, canonical: Callable[[str], str], pools: frozenset[str]) -> _Rule:
    key = ("routing", "rules", number)
    if rule.file is not None:
        return _Rule(f"file {rule.file}", key, _by_file(rule.file, rule.pool, rule.backend_user, canonical, pools))
    assert rule.pool is not None  # the model asks for it
    fill, pool = compile_template(rule.backend_user or "{user}"), rule.pool
    if rule.regex is not None:
        return _Rule(f"regex {rule.regex}", key, _by_regex(re.compile(rule.regex), pool, fill))
    if rule.user is not None:
        return _Rule(f"user {rule.user}", key, _by_user(canonical(rule.user), pool, fill))
    domain = (rule.domain or "").lower()
    return _Rule(f"domain {domain}", key, _by_domain(domain, pool, fill))


def _by_regex(pattern: re.Pattern[str], pool: str, fill: Fill) -> Try:
    def attempt(user: str, fields: Mapping[str, str]) -> Route | None:
        match = pattern.fullmatch(user)
        return None if match is None else Route(pool, fill(fields, match))

    return attempt


def _by_user(wanted: str, pool: str, fill: Fill) -> Try:
    return lambda user, fields: Route(pool, fill(fields, None)) if user == wanted else None


def _by_domain(domain: str, pool: str, fill: Fill) -> Try:
    return lambda _user, fields: Route(pool, fill(fields, None)) if fields["domain"].lower() == domain else None


def _by_file(
    path: Path, pool: str | None, template: str | None, canonical: Callable[[str], str], pools: frozenset[str]
) -> Try:
    routes = RouteFile(path, pool, canonical, pools)
    fill = compile_template(template or "{user}")

    def attempt(user: str, fields: Mapping[str, str]) -> Route | None:
        found = routes.find(user)
        if found is None:
            return None
        return Route(found.pool, found.backend_user or fill(fields, None))

    return attempt


def _by_default(pool: str, template: str | None, key: tuple[str, ...]) -> _Rule:
    fill = compile_template(template or "{user}")
    return _Rule("everybody else", key, lambda _user, fields: Route(pool, fill(fields, None)))
