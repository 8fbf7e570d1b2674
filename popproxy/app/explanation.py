"""What was found out about a login that nobody has tried, as values; and its parts in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Literal

from popproxy.backend.balancer import State
from popproxy.backend.pool import Backend, Pool
from popproxy.config.model import Config
from popproxy.config.model_pools import Pool as PoolConfig
from popproxy.config.units import format_server, quote
from popproxy.errors import BackendError
from popproxy.kerberos.mapping import split_principal
from popproxy.pop3.logins import Apop, Bearer, External, Gssapi, Login, Plain, UserPass
from popproxy.sasl.credentials import Layer
from popproxy.state.orders import Hold, Move
from popproxy.types import Address, Location, Step

UP = State.UP
Kind = Literal["principal", "user"]
Verdict = Literal["let in", "refused", "not set up"]


@dataclass(frozen=True, slots=True)
class Explained:
    """One step, and the stage of the login that it belongs to."""

    stage: str
    step: Step


@dataclass(slots=True)
class Explanation:
    """Everything that was found out; what comes behind the step that ended it is empty."""

    name: str
    kind: Kind
    listener: str = ""
    steps: list[Explained] = field(default_factory=list)
    mailbox: str = ""
    pool: str = ""
    backend_user: str = ""
    strategy: str = ""
    verdict: Verdict = "refused"
    result: str = ""
    """The verdict in one sentence."""


class Ended(Exception):
    """The last step says why the login goes no further; `result` is that in one sentence."""

    def __init__(self, verdict: Verdict, result: str) -> None:
        super().__init__(result)
        self.verdict = verdict
        self.result = result


def taken_for(name: str, config: Config) -> tuple[Kind, str]:
    """Principal or user, and why: their names look alike."""
    if config.kerberos is None:
        return "user", "taken for a user: there is no section kerberos"
    parts, realm = split_principal(name)
    listed = [one.realm for one in config.kerberos.realms]
    if realm in listed:
        return "principal", f"taken for a principal: {realm} is one of kerberos.realms"
    if len(parts) > 1:
        return "principal", "taken for a principal: it has two parts, with / between them"
    if realm is not None and realm == realm.upper() != realm.lower():
        return "principal", f"taken for a principal: {realm} is written like a realm"
    near = next((one for one in listed if realm is not None and one.lower() == realm.lower()), None)
    hint = f" (the principal is {parts[0]}@{near})" if near else f" (a principal would be {name}@{listed[0]})"
    return "user", "taken for a user" + (hint if near or realm is None else "")


def way_in_words(pool: PoolConfig, config: Config, key: tuple[str | int, ...]) -> Iterator[Step]:
    """What the connection goes through, and what the servers are told: nothing by default."""
    if pool.proxy_header != "none":
        yield Step(f"the server is told the client's address (PROXY {pool.proxy_header})", (*key, "proxy_header"))
    if pool.xclient:
        yield Step("the server is told the client's address (XCLIENT)", (*key, "xclient"))
    if pool.tunnel is not None:
        yield Step(f"through the SSH tunnel {_tunnel_in_words(pool.tunnel, config)}", (*key, "tunnel"))
    if pool.socks is not None:
        yield Step(f"through the SOCKS proxy {pool.socks.address}", (*key, "socks"))
    for server, name in pool.server_tunnels.items():
        through = "through no tunnel" if name is None else f"through the SSH tunnel {_tunnel_in_words(name, config)}"
        yield Step(f"to {server} {through}", (*key, "server_tunnels", server))


def _tunnel_in_words(name: str, config: Config) -> str:
    way: list[str] = []
    following: str | None = name
    while following is not None:
        tunnel = config.tunnels[following]
        way.append(f"{following} ({tunnel.user} at {tunnel.host}:{tunnel.port})")
        following = tunnel.via
    return " via ".join(way)


def hold_in_words(hold: Hold) -> str:
    """What an operator's hold means for logins."""
    until = "until he is released" if hold.until == inf else f"until {_moment(hold.until)}"
    return (
        f"held by an operator since {_moment(hold.since)}, {until}: [SYS/TEMP]{', after a wait' if hold.wait else ''}"
    )


def move_in_words(move: Move) -> str:
    """Where an operator has moved the user."""
    server = "" if move.server is None else f", server {move.server}"
    return (
        f"moved by an operator on {_moment(move.since)} to pool {move.pool}{server}, whatever rules and directories say"
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def place_in_words(place: Location | None) -> str:
    """Where directories say that the mail is."""
    if place is None:
        return "nothing about where the mail is, so rules decide"
    server = None if place.server is None else format_server(place.server)
    said = [
        f"{what} {quote(str(value))}"
        for what, value in (("pool", place.pool), ("server", server), ("there", place.backend_user))
        if value is not None
    ]
    return ", ".join(said)


def servers_in_words(
    pool: Pool, backend_user: str, named: Address | None = None, namer: str = ""
) -> list[tuple[Backend, str]]:
    """The servers to which the user's logins may go, and when, while all of them work; then those that are closed.

    `named` is the one where `namer` says that the user's mail is.
    """
    closed = [one for one in pool.backends if one.member.order is not UP]
    refused = [(one, f"{one.member.order}: ordered by an operator") for one in closed]
    if len(closed) == len(pool.backends):
        return refused
    return [*_open_in_words(pool, backend_user, named, namer), *refused]


def _open_in_words(pool: Pool, backend_user: str, named: Address | None, namer: str) -> list[tuple[Backend, str]]:
    if len(pool.backends) == 1:
        return [(pool.backends[0], "the only one")]
    if named is not None:
        try:
            first, *others = pool.candidates(backend_user, named, 0.0)
        except BackendError:
            return []
        return [(first, f"where {namer}"), *((one, "then") for one in others)]
    if pool.config.balance.choose == "weights":
        able = [backend for backend in pool.backends if backend.member.order is UP]
        total = sum(backend.member.weight for backend in able)
        shares = [(backend, f"by chance: {backend.member.weight} of {total} logins") for backend in able]
        return [(backend, words if backend.member.weight else "if no other works") for backend, words in shares]
    try:
        ranked = pool.candidates(backend_user, None, 0.0)
    except BackendError:  # his only one is closed
        return []
    if not pool.config.shared:
        return [(ranked[0], f"the only one for {backend_user}, by the hash of the name")]
    how = (
        f"tried first for {backend_user}, by the hash of the name"
        if pool.config.balance.choose == "hash"
        else "tried first"
    )
    return [(backend, "then" if place else how) for place, backend in enumerate(ranked)]


def link_in_words(pool: Pool) -> str:
    """How the connection to the pool's servers is protected."""
    config = pool.config
    if config.tls == "none":
        return "in clear from the end of the tunnel on" if config.all_tunneled else "in clear"
    how = "STLS" if config.tls == "stls" else "TLS"
    if config.legacy_tls:
        how = f"{how}, from version 1.0 on (quarantine)"
    if config.pin:
        how = (
            f"{how}, with one of {len(config.pin)} pinned keys"
            if len(config.pin) > 1
            else f"{how}, with the pinned key"
        )
    if not config.verify:
        return f"{how}, the certificate is not verified"
    trust = f"by {config.ca}" if config.ca else "by the system's authorities"
    name = f" for the name {config.server_name}" if config.server_name else ""
    return f"{how}, the certificate is verified {trust}{name}"


def login_in_words(login: Login, pool: Pool) -> str:
    """What is said to the server."""
    match login:
        case UserPass(users_own=True):
            return f"USER {login.user} and the client's password, about which the server decides"
        case UserPass():
            return f"USER {login.user} and PASS"
        case Apop():
            return f"APOP {login.user}"
        case Plain():
            return f"AUTH PLAIN as {login.authcid} for {login.authzid}"
        case External():
            shown = pool.config.certificate
            return f"AUTH EXTERNAL for {login.authzid}, with the certificate {shown.cert if shown else ''}"
        case Bearer():
            return f"AUTH {login.mechanism} for {login.user}, {_token_in_words(pool)}"
        case Gssapi():
            how = f"AUTH GSSAPI for {login.authzid}, {_TICKETS[login.strategy]} ({pool.config.kerberos.principal})"
            return how if pool.config.tls != "none" else f"{how}, {_layers(login.layers)}"


def _layers(layers: Sequence[Layer]) -> str:
    names = ["confidential" if layer is Layer.CONFIDENTIALITY else "signed" for layer in layers if layer != Layer.NONE]
    if Layer.NONE in layers:
        names.append("in clear")
    return f"everything behind it {' or '.join(names)}"


def _token_in_words(pool: Pool) -> str:
    section = pool.config.xoauth2
    if section is None:
        return ""
    own = section.grant == "client_credentials"
    return f"with an access token {'of our own' if own else 'got by the refresh token'}, if {section.endpoint} gives it"


_TICKETS = {
    "kerberos-forwarded": "with a ticket got by the one that the client forwards, if it forwards one",
    "kerberos-delegated": "if the KDC gives us a ticket in exchange for the client's",
    "kerberos-transition": "if the KDC gives us a ticket in the user's name",
    "kerberos-service": "with our own ticket",
}
