"""Logins by ticket as scenarios of the whole run: popproxy's beside Dovecot's, each with a realm of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.kerberos_logins import Case, LoginFailedError, rounds
from tests.bench.kerberos_site import kerberos_site
from tests.bench.scenario import Figure, Measurement, Sample
from tests.bench.target import TargetError

LOGINS = 400
"""Of each kind in a round."""


@dataclass(frozen=True)
class TicketScenario:
    """What a login by ticket takes beyond one by password. `kinds` are names of cases of ``kerberos_logins``.

    Measured by `samples`, not like the others: the clients are this program's, since they must make tokens.
    """

    name: str
    title: str
    kinds: tuple[tuple[str, str, str], ...]  # target; with a ticket; with a password
    setup: str = "kerberos"
    figures: tuple[Figure, ...] = (Figure("CPU beyond a password", "us"), Figure("CPU", "us"))


_DOVECOT = ("dovecot", "Dovecot GSSAPI", "Dovecot password")
TICKETS = (
    TicketScenario(
        "gssapi", "logins by SASL GSSAPI, mutual", (("popproxy", "popproxy GSSAPI", "popproxy password"), _DOVECOT)
    ),
    TicketScenario(
        "kpop", "logins by KPOP; Dovecot's by GSSAPI", (("popproxy", "popproxy KPOP", "popproxy password"), _DOVECOT)
    ),
)


def samples(scenarios: Sequence[TicketScenario], count: int, logins: int) -> Iterator[Sample]:
    """Measures in so many rounds."""
    done = 0
    try:
        with kerberos_site() as site:
            for measured in rounds(site, count, logins):
                for scenario in scenarios:
                    yield from _of_round(scenario, measured, done)
                done += 1
    except (LoginFailedError, TargetError) as error:
        for scenario in scenarios:
            yield Sample(scenario.name, "popproxy", done, None, str(error))


def _of_round(scenario: TicketScenario, measured: dict[str, Case], number: int) -> Iterator[Sample]:
    for target, ticket, password in scenario.kinds:
        whole, base = measured[ticket].values[number], measured[password].values[number]
        values = {"CPU beyond a password": whole - base, "CPU": whole}
        yield Sample(scenario.name, target, number, Measurement(values))
