"""What the sections on abuse must agree on: limits, penalties, and the control socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding
from popproxy.config.model import Config
from popproxy.config.model_abuse import Penalties


def _limits(config: Config) -> Iterator[Finding]:
    limits = config.limits
    for key, whole, of_what in (
        ("connections_per_address", "connections", "connections together"),
        ("sessions_per_user_and_address", "sessions_per_user", "sessions of the user together"),
    ):
        most = getattr(limits, whole)
        if getattr(limits, key) > most:
            what, cure = f"is more than all {of_what} ({most})", f"write {most} or less"
            yield Finding(("limits", key), what, cure, warning=True, because=(("limits", whole),))


def _workers(config: Config) -> Iterator[Finding]:
    connections, workers = config.limits.connections, config.workers
    if connections < workers:
        cure, because = f"write {workers} or more, or fewer workers", (("workers",),)
        yield Finding(("limits", "connections"), f"leaves none to some of {workers} workers", cure, because=because)


def _penalties(config: Config) -> Iterator[Finding]:
    penalties = config.penalties
    for number, network in enumerate(penalties.allow):
        if network.prefixlen == 0:
            cure = "name the networks of your own servers only, or write enabled: false"
            yield Finding(("penalties", "allow", number), "nobody would be slowed down", cure, warning=True)
    if penalties.answer == "refuse" and penalties.tarpit != Penalties.model_fields["tarpit"].default:
        because = (("penalties", "answer"),)
        cure = "write answer: tarpit, or remove it"
        yield Finding(("penalties", "tarpit"), "has no effect with answer: refuse", cure, warning=True, because=because)


def _control(config: Config) -> Iterator[Finding]:
    control = config.control
    if control.socket is None:
        for key in ("group", "users", "groups"):
            if getattr(control, key):
                because = (("control", "socket"),)
                yield Finding(
                    ("control", key), "has no effect without a socket", "remove it", warning=True, because=because
                )


def _http(config: Config) -> Iterator[Finding]:
    http = config.http
    if http.listen is None and http.token is not None:
        because = (("http", "listen"),)
        yield Finding(("http", "token"), "has no effect without listen", "remove it", warning=True, because=because)


ABUSE_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_limits, _workers, _penalties, _control, _http)
