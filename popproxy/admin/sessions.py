"""The commands ``who``, ``kick`` and ``stats``."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from popproxy import __version__
from popproxy.admin.commands import Commands, Role, Route
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.auth.names import NameRefused
from popproxy.observe.metric_exposition import Exposition, Values
from popproxy.session.session import Session
from popproxy.session.view import SessionView
from popproxy.types import CloseReason


def add_sessions(
    commands: Commands, sessions: Collection[Session], counts: Callable[[], Awaitable[Exposition]],
    vet_name: Callable[[str], str],
) -> None:  # fmt: skip
    """Add the commands.

    `sessions` are those of the process at any time; `counts` gets the metrics of all processes; `vet_name` makes a
    user's name canonical.
    """
    started = time.time()

    def chosen(session: str | None, user: str | None, network: str | None) -> Iterator[tuple[Session, SessionView]]:
        fits = _network(network)
        name = None if user is None else _name(user, vet_name)
        for one in tuple(sessions):
            view = one.view()
            if session in (None, view.id) and name in (None, view.user) and fits(view.address):
                yield one, view

    async def who(
        *, session: str | None = None, user: str | None = None, network: str | None = None, everything: bool = False
    ) -> object:
        views = (view for _, view in chosen(session, user, network) if everything or view.user)
        now = datetime.now(UTC).timestamp()
        return {"sessions": [_shown(view, now) for view in sorted(views, key=lambda view: -view.seconds)]}

    async def kick(*, session: str | None = None, user: str | None = None, network: str | None = None) -> object:
        if [session, user, network].count(None) != 2:
            raise CommandFailed(Reason.BAD_ARGUMENTS, "name a session, a user, or an address or network")
        found = list(chosen(session, user, network))
        if not found:
            raise CommandFailed(Reason.REFUSED, "there is no such session")
        kicked: list[str] = []
        left: list[str] = []
        for one, view in found:
            # Between QUIT and its answer the server is deleting: to end that would only make it uncertain.
            (left if view.phase == "update" else kicked).append(view.id)
            if view.phase != "update":
                one.shut_down(CloseReason.KICKED, "ended by an operator")
        return {"kicked": kicked, "in_update": left}

    async def stats() -> object:
        counted = await counts()
        began = counted.started() or started
        return {"version": __version__, "seconds": time.time() - began, **_totals(counted)}

    commands.add("who", who, Role.VIEWER, merged={"sessions": "descending seconds"})
    commands.add("kick", kick)
    commands.add("stats", stats, Role.VIEWER, route=Route.ONE)


def _shown(view: SessionView, now: float) -> dict[str, object]:
    from_client, to_client = view.octets
    since = datetime.fromtimestamp(now - view.seconds, UTC).isoformat(timespec="seconds")
    return {**asdict(view), "octets": {"from_client": from_client, "to_client": to_client}, "since": since}


def _totals(counts: Exposition) -> dict[str, object]:
    """What has been counted since the start, without the fine print of /metrics."""
    values = counts.values
    octets = values("bytes_{}")
    audit = values("audit_records")
    sessions = values("backend_sessions")
    return {
        "connections": sum(values("connections").values()),
        "sessions": _by(values("sessions"), 1),
        "listeners": _listeners(counts),
        "logins": _by(values("auth_attempts"), 1),
        **_attempts(values("auth_attempts")),
        "messages": dict(values("messages")),
        "octets": {"from_client": octets["to_backend"], "to_client": octets["to_client"]},
        "deletions": dict(values("deletions")),
        "updates": dict(values("update")),
        "audit": {
            "healthy": bool(values("audit_healthy")[()]),
            "dropped": sum(count for key, count in audit.items() if key[1] == "dropped"),
        },
        "shared": {
            "up": bool(values("shared_state_up")[()]),
            "members": round(values("shared_state_members")[()]),
        },
        "backends": {
            str(label): {"up": bool(up), "sessions": sessions.get(label, 0)}
            for label, up in values("backend_up").items()
        },
    }


def _listeners(counts: Exposition) -> list[dict[str, object]]:
    sessions, refused = _by(counts.values("sessions"), 0), _by(counts.values("connections_refused"), 0)
    expiry, connections = counts.values("tls_certificate_expiry"), counts.values("connections")
    return [
        {
            "name": name, "sessions": sessions[name], "connections": connections[name], "refused": refused[name],
            "certificate_expires": expiry.get(name) or None,
        }
        for name in counts.family("connections").labels["listener"]  # what is counted of others was there before
    ]  # fmt: skip


def _attempts(values: Values) -> dict[str, object]:
    """Logins by mechanism and outcome, and those that failed by reason; what has not happened is left out."""
    mechanisms: dict[str, dict[str, float]] = {}
    failures: dict[str, float] = {}
    for key, count in values.items():
        if count:
            mechanism, outcome, reason = tuple(key)
            by = mechanisms.setdefault(mechanism, dict.fromkeys(("success", "failure", "error"), 0))
            by[outcome] += count
            if outcome != "success":
                failures[reason] = failures.get(reason, 0) + count
    return {"mechanisms": mechanisms, "failures": failures}


def _by(values: Values, place: int) -> dict[str, float]:
    """Sums over all labels but one."""
    sums: dict[str, float] = {}
    for key, value in values.items():
        sums[str(key[place])] = sums.get(str(key[place]), 0) + value
    return sums


def _name(user: str, vet_name: Callable[[str], str]) -> str:
    try:
        return vet_name(user)
    except NameRefused as refused:
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"that is no user name ({refused.reason})") from None


def _network(text: str | None) -> Callable[[str], bool]:
    """Whether an address as it is shown (``192.0.2.1:4711``) lies in the network `text`."""
    if text is None:
        return lambda _address: True
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise CommandFailed(Reason.BAD_ARGUMENTS, str(error)) from None
    return lambda address: ipaddress.ip_address(address.rpartition(":")[0].strip("[]").partition("%")[0]) in network
