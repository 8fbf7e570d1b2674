"""Metrics: counted in plain integers, folded into the exposition format by a collector when somebody asks.

An increment costs some 50 ns that way; through a child of prometheus_client it would be seven times that, per message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from popproxy.observe.metric_exposition import Buckets, Exposition, Values
from popproxy.observe.metric_families import Family, families
from popproxy.observe.metric_values import Histogram, LabelledHistogram, Series
from popproxy.types import ThrottleScope


class Executor(Protocol):
    """A bounded pool of threads, as far as the metrics go."""

    @property
    def limit(self) -> int:
        """Threads that there may be."""
        ...

    @property
    def queue_limit(self) -> int:
        """Calls that may wait."""
        ...

    @property
    def busy(self) -> int:
        """Threads at work."""
        ...

    @property
    def queued(self) -> int:
        """Calls that wait for a thread."""
        ...

    @property
    def abandoned(self) -> int:
        """Calls given up by their caller, since the start."""
        ...


class Metrics(Exposition):
    """All metrics of the process, changed like ``metrics.connections["pop3"] += 1``. Names and labels: metric_families.

    `listeners`, `backends`, `directories` and `tunnels` are all the names that may occur as such labels.
    """

    connections: Series[str]
    connections_refused: Series[tuple[str, str]]
    sessions: Series[tuple[str, str]]
    sessions_ended: Series[tuple[str, str]]
    session_duration: LabelledHistogram
    auth_attempts: Series[tuple[str, str, str]]
    auth_duration: LabelledHistogram
    auth_throttled: Series[str]
    tls_handshakes: Series[tuple[str, str, str]]
    tls_certificate_expiry: Series[str]
    kpop_handshakes: Series[tuple[str, str]]
    commands: Series[tuple[str, str]]
    messages: Series[str]
    truncated: Series[str]
    update: Series[str]
    deletions: Series[str]
    response_codes: Series[str]
    backend_up: Series[str]
    backend_sessions: Series[str]
    backend_connect_duration: LabelledHistogram
    backend_tls_handshakes: Series[tuple[str, str]]
    backend_login_duration: LabelledHistogram
    backend_errors: Series[tuple[str, str, str]]
    backend_tickets: Series[tuple[str, str]]
    backend_access_tokens: Series[str]
    backend_credentials_refused: Series[str]
    ssh_connections: Series[tuple[str, str]]
    ssh_failures: Series[tuple[str, str]]
    audit_records: Series[tuple[str, str]]
    audit_write_failures: Series[str]
    audit_pending: Series[str]
    directory_duration: LabelledHistogram
    kdc_duration: LabelledHistogram
    operator_commands: Series[tuple[str, str]]
    auth_cache: Series[tuple[str, str]]
    event_loop_lag: Histogram
    shared_state_duration: Histogram
    shared_state_failures: Series[str]

    def __init__(
        self, listeners: Sequence[str], backends: Sequence[str], directories: Sequence[str] = (),
        tunnels: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.accept_errors = 0
        self.audit_healthy = 1
        self.audit_last_checkpoint = 0.0
        self.audit_unsigned = 0
        self.bytes_to_backend = 0
        self.bytes_to_client = 0
        self.config_last_reload_successful = 0
        self.config_last_reload_success_timestamp_seconds = 0.0
        self.shared_state_up = 1
        self.shared_state_members = 1
        self.shared_state_local_decisions = 0
        self.shared_state_rejected = 0
        self.worker_restarts = 0
        self._executors: dict[str, Executor] = {}
        self._keytabs: dict[str, Callable[[], bool]] = {}  # by listener
        self._penalties: dict[str, Callable[[], int]] = {scope.value: int for scope in ThrottleScope}  # 0 at first
        self._states: Callable[[], Mapping[tuple[str, ...], float]] = dict
        self._waiting: Callable[[], Mapping[str, float]] = dict
        super().__init__(families(listeners, backends, directories, tunnels))
        for family in self.families:
            storage = _storage(family)
            if storage is not None:
                setattr(self, family.attribute, storage)
        self._process = ProcessCollector(registry=None)

    def expect_backend(self, label: str) -> None:
        """A server that was found out about: one of the label's values from now on."""
        for family in self.families:
            stored = getattr(self, family.attribute, None) if "backend" in family.labels else None
            if isinstance(stored, Series | LabelledHistogram):
                stored.expect(label)

    def watch_executor(self, name: str, executor: Executor) -> None:
        """Expose a pool of threads under the label ``pool="name"``."""
        self._executors[name] = executor

    def watch_keytab(self, listener: str, readable: Callable[[], bool]) -> None:
        """Ask at each scrape, in a thread, whether a listener's keytab can be used."""
        self._keytabs[listener] = readable

    def watch_penalties(self, scope: str, tracked: Callable[[], int]) -> None:
        """Expose how many are `tracked` under the label ``scope``; any thread may ask for it."""
        self._penalties[scope] = tracked

    def watch_pools(
        self, states: Callable[[], Mapping[tuple[str, ...], float]], waiting: Callable[[], Mapping[str, float]]
    ) -> None:
        """Ask at each scrape for the states of servers (by pool, server, state), and how many logins wait (by pool)."""
        self._states, self._waiting = states, waiting

    def process(self) -> Iterable[Metric]:
        """What Linux knows of this process."""
        return self._process.collect()

    def values_of(self, family: Family) -> tuple[Values, int]:
        """The values of a family by label values, and how many keys had no place in it."""
        holder, _, field = family.attribute.partition(".")
        if holder == "executor":
            return {name: getattr(executor, field) for name, executor in self._executors.items()}, 0
        if holder == "pools" and field == "states":
            return {key: value for key, value in self._states().items()}, 0  # noqa: C416 - for the type
        if holder == "pools":
            return {pool: value for pool, value in self._waiting().items()}, 0  # noqa: C416 - for the type
        if holder == "keytab":
            return {listener: readable() for listener, readable in self._keytabs.items()}, 0
        if holder == "penalties":
            return {scope: tracked() for scope, tracked in self._penalties.items()}, 0
        if "{}" in holder:
            (directions,) = family.labels.values()
            return {value: getattr(self, holder.format(value)) for value in directions}, 0
        stored = getattr(self, holder)
        return stored.settled() if isinstance(stored, Series) else ({(): stored}, 0)

    def histograms_of(self, family: Family) -> Mapping[str | tuple[str, ...], Buckets]:
        """The observations of a histogram by label values."""
        stored: Histogram | LabelledHistogram = getattr(self, family.attribute)
        if isinstance(stored, Histogram):
            return {(): stored.counts()}
        return {key: histogram.counts() for key, histogram in tuple(stored.series.items())}


def _storage(family: Family) -> Series[str] | Histogram | LabelledHistogram | None:
    """Where the values of a family are kept, if it is not a plain number or somebody else's."""
    if family.kind == "histogram":
        if not family.labels:
            return Histogram(family.bounds)
        return LabelledHistogram(family.bounds, *family.labels.values())
    if not family.labels or not family.attribute.isidentifier():
        return None
    return Series(*family.labels.values())
