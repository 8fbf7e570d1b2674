"""The table of all metrics: names, help, labels and their closed sets of values.

Rules: prefix ``popproxy_``, base units, no label ever holds a user, an address of a client or a session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from popproxy.types import AuthFailure, CloseReason, Mechanism, ThrottleScope
from popproxy.wire.kpop import KpopFailure

PREFIX = "popproxy_"

VERBS = (
    *("CAPA", "DELE", "LAST", "LIST", "NOOP", "QUIT", "RETR", "RSET", "STAT", "TOP", "UIDL"),
    *("AUTH", "APOP", "RPOP", "USER", "PASS", "STLS", "XCLIENT", "OTHER"),
)
STAGES = ("connect", "greeting", "tls", "capa", "login", "relay", "update")
BACKEND_REASONS = (
    *("refused", "timeout", "dns", "unreachable", "eof", "reset", "protocol", "tls", "rejected", "layer", "stall"),
    *("garbage", "oversize", "unsolicited", "tunnel", "socks", "other"),
)
TICKET_STRATEGIES = ("kerberos-forwarded", "kerberos-delegated", "kerberos-transition", "kerberos-service")
PROXY_STRATEGIES = ("apop", "stored", "master", "external", "xoauth2", *TICKET_STRATEGIES)
"""Those that show a backend something of the proxy's, or of its vault."""
TICKET_OBSTACLES = ("kdc", "unavailable", "not_allowed", "no_target", "not_delegatable", "own_credential")
TUNNEL_STATES = ("connecting", "up", "down")
TUNNEL_FAILURES = (
    *("refused", "timeout", "dns", "unreachable", "host_key", "login", "negotiation", "protocol", "lost", "via"),
    *("set_up", "internal"),
)
RESPONSE_CODES = ("AUTH", "SYS/TEMP", "SYS/PERM", "IN-USE", "LOGIN-DELAY", "other")
SINKS = ("file", "stdout", "syslog", "journald")
SHARED_STATE_REASONS = ("refused", "timeout", "lost", "login", "tls", "protocol", "other")

_USUAL = (("success", "none"), ("failure", "bad_credentials"), ("error", "unavailable"))
"""Outcomes of logins, with their reasons, that are there from the start."""

_QUICK = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LOST = ("eof", "reset", "timeout", "protocol")
_USUAL_ERRORS = (
    *(("connect", reason) for reason in ("refused", "timeout", "dns", "unreachable", "reset", "tunnel", "other")),
    *((stage, reason) for stage in ("greeting", "capa", "login", "relay") for reason in _LOST),
    *(("tls", "tls"), ("tls", "timeout"), ("login", "rejected"), ("relay", "stall"), ("update", "eof")),
    *(("update", "reset"), ("update", "timeout")),
)
"""How servers fail, by stage, as far as it is there from the start: else the first failure would be no increase."""

_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LOGIN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SESSION = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `labels` maps each label name to all the values it can have.

    `attribute` is where `Metrics` keeps the values: a `Series` or a histogram if there are labels, a number if there
    are none. ``bytes_{}`` stands for one number per label value, ``executor.busy`` for an attribute of the watched
    executors, ``keytab.readable`` and ``penalties.tracked`` for other things watched. `sparse` leaves series of value 0
    out, where 0 would be a false statement or there are too many, but for those in `always`. `merged` says what becomes
    of a gauge that several workers have: their ``sum``, or the ``max`` or ``min`` of those that serve new clients.
    """

    attribute: str
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bounds: Sequence[float] = ()
    sparse: bool = False
    always: Set[tuple[str, ...]] = frozenset()
    merged: Literal["sum", "max", "min"] = "sum"


def families(
    listeners: Sequence[str], backends: Sequence[str], directories: Sequence[str] = (), tunnels: Sequence[str] = ()
) -> list[Family]:
    """All families of a proxy with these listeners, directories, tunnels (names) and backends (``host:port``)."""
    listener = {"listener": tuple(listeners)}
    backend = {"backend": tuple(backends)}
    tunnel = {"tunnel": tuple(tunnels)}
    reasons = tuple(reason.value for reason in CloseReason)
    auth = {
        "mechanism": tuple(mechanism.value for mechanism in Mechanism),
        "outcome": ("success", "failure", "error"),
        "reason": tuple(reason.value for reason in AuthFailure),
    }
    handshake = {"outcome": ("success", "failure"), "version": ("TLSv1.2", "TLSv1.3", "none")}
    bodies = {"verb": ("RETR", "TOP")}
    executor = {"pool": ()}
    throttle = {"scope": tuple(scope.value for scope in ThrottleScope)}
    return [
        Family("connections", "connections", "counter", "Connections accepted.", listener),
        Family(
            "connections_refused",
            "connections_refused",
            "counter",
            "Connections closed at once because of a limit.",
            {**listener, "reason": ("limit", "address_limit", "evicted", "fd")},
        ),
        Family("accept_errors", "accept_errors", "counter", "Failures to accept a connection."),
        Family(
            "sessions",
            "sessions",
            "gauge",
            "Sessions by POP3 state.",
            {**listener, "phase": ("authorization", "transaction", "update")},
        ),
        Family(
            "sessions_ended", "sessions_ended", "counter", "Sessions ended, by reason.", {**listener, "reason": reasons}
        ),
        Family(
            "session_duration",
            "session_duration_seconds",
            "histogram",
            "Time from connection to end of session.",
            listener,
            _SESSION,
        ),
        Family(
            "auth_attempts",
            "auth_attempts",
            "counter",
            "Login attempts of clients.",
            auth,
            sparse=True,  # most of the combinations cannot be, and all of them would be a thousand series
            always=frozenset((mechanism, *usual) for mechanism in auth["mechanism"] for usual in _USUAL),
        ),
        Family(
            "auth_duration",
            "auth_duration_seconds",
            "histogram",
            "Time to judge a credential.",
            {"authenticator": ()},  # those that are configured are made known by whoever measures them
            _LOGIN,
        ),
        Family(
            "auth_throttled",
            "auth_throttled",
            "counter",
            "Logins refused without a look at the password, by what had too many wrong ones.",
            throttle,
        ),
        Family(
            "penalties.tracked",
            "penalties_tracked",
            "gauge",
            "Addresses, users and pairs of them against which wrong passwords are counted.",
            throttle,
            merged="max",
        ),
        Family(
            "tls_handshakes",
            "tls_handshakes",
            "counter",
            "TLS handshakes with clients; version is none if it failed before one was agreed.",
            {**listener, **handshake},
        ),
        Family(
            "tls_certificate_expiry",
            "tls_certificate_expiry_timestamp_seconds",
            "gauge",
            "When the listener's certificate that expires first does so; absent without certificate.",
            listener,
            sparse=True,
            merged="min",
        ),
        Family(
            "keytab.readable",
            "keytab_readable",
            "gauge",
            "1 if the listener's keytab can be read and holds a key of its principals; absent without Kerberos.",
            {"listener": ()},
            merged="min",
        ),
        Family(
            "kpop_handshakes",
            "kpop_handshakes",
            "counter",
            "KPOP handshakes by why they failed; none for those that did not.",
            {**listener, "reason": ("none", "refused", "unavailable", *(failure.value for failure in KpopFailure))},
        ),
        Family(
            "commands",
            "commands",
            "counter",
            "Commands of clients and how they were answered.",
            {"verb": VERBS, "outcome": ("ok", "err")},
        ),
        Family("messages", "messages", "counter", "Messages relayed in full.", bodies),
        Family("truncated", "messages_truncated", "counter", "Messages cut short because a peer was lost.", bodies),
        Family(
            "bytes_{}",
            "relay_bytes",
            "counter",
            "Octets relayed after login.",
            {"direction": ("to_client", "to_backend")},
        ),
        Family(
            "update",
            "update",
            "counter",
            "What backends answered to QUIT after a login.",
            {"outcome": ("committed", "refused", "unknown")},
        ),
        Family(
            "deletions",
            "deletions",
            "counter",
            "Messages marked as deleted, by what became of the mark.",
            {"outcome": ("committed", "abandoned", "refused", "unknown")},
        ),
        Family(
            "response_codes", "response_codes", "counter", "Response codes sent to clients.", {"code": RESPONSE_CODES}
        ),
        Family(
            "backend_up",
            "backend_up",
            "gauge",
            "1 if the latest attempt to use the backend succeeded.",
            backend,
            merged="max",
        ),
        Family(
            "pools.states",
            "backend_state",
            "gauge",
            "1 for the state that a server of a pool is in.",
            {"pool": (), "backend": (), "state": ()},
            merged="max",
        ),
        Family("pools.waiting", "queue_waiting", "gauge", "Logins that wait for a place at a server.", {"pool": ()}),
        Family("backend_sessions", "backend_sessions", "gauge", "Sessions logged in at the backend.", backend),
        Family(
            "backend_connect_duration",
            "backend_connect_duration_seconds",
            "histogram",
            "Time from connecting to a backend to its greeting.",
            backend,
            _SHORT,
        ),
        Family(
            "backend_tls_handshakes",
            "backend_tls_handshakes",
            "counter",
            "TLS handshakes with backends that have come about, by version.",
            {**backend, "version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")},
            sparse=True,  # a server speaks one of them
        ),
        Family(
            "backend_login_duration",
            "backend_login_duration_seconds",
            "histogram",
            "Time from a backend's greeting to the login.",
            backend,
            _LOGIN,
        ),
        Family(
            "backend_errors",
            "backend_errors",
            "counter",
            "Failures of backends.",
            {**backend, "stage": STAGES, "reason": BACKEND_REASONS},
            sparse=True,  # there are four times as many pairs as can be
            always=frozenset((label, *usual) for label in backends for usual in _USUAL_ERRORS),
        ),
        Family(
            "backend_tickets",
            "backend_tickets",
            "counter",
            "Kerberos tickets wanted for logins at backends: ok, or what was in the way.",
            {"strategy": TICKET_STRATEGIES, "outcome": ("ok", *TICKET_OBSTACLES)},
        ),
        Family(
            "backend_access_tokens",
            "backend_access_tokens",
            "counter",
            "Access tokens (OAuth) asked for, for logins at backends, by what the endpoint answered.",
            {"outcome": ("ok", "unavailable", "refused")},
        ),
        Family(
            "backend_credentials_refused",
            "backend_credentials_refused",
            "counter",
            "Logins refused by a backend or a token endpoint for what the proxy has shown there. To be mended.",
            {"strategy": PROXY_STRATEGIES},
        ),
        Family(
            "ssh_connections",
            "ssh_connections",
            "gauge",
            "SSH connections of tunnels, by state.",
            {**tunnel, "state": TUNNEL_STATES},
        ),
        Family(
            "ssh_failures",
            "ssh_failures",
            "counter",
            "SSH connections that did not come about, or were lost.",
            {**tunnel, "reason": TUNNEL_FAILURES},
        ),
        Family(
            "directory_duration",
            "directory_duration_seconds",
            "histogram",
            "Time that a directory took to answer.",
            {"directory": tuple(directories), "outcome": ("found", "unknown", "refused", "unavailable")},
            _LOGIN,
        ),
        Family(
            "kdc_duration",
            "kdc_duration_seconds",
            "histogram",
            "Time that a KDC took, for a password (waiting for a thread included) or a step towards a server.",
            {"operation": (), "outcome": ()},  # those that are configured are made known by whoever measures them
            _LOGIN,
        ),
        Family(
            "auth_cache",
            "auth_cache",
            "counter",
            "Passwords looked for among those that were right a moment ago.",
            {"source": (*directories, "kerberos"), "outcome": ("hit", "miss")},
        ),
        Family(
            "shared_state_up",
            "shared_state_up",
            "gauge",
            "1 if what processes share (penalties, sessions of users) is reached; 0: this one goes by its share.",
            merged="min",
        ),
        Family(
            "shared_state_members",
            "shared_state_members",
            "gauge",
            "Processes that share it, as far as is known.",
            merged="max",
        ),
        Family(
            "shared_state_duration",
            "shared_state_duration_seconds",
            "histogram",
            "Time that a batch of questions about leases, marks and claims took.",
            bounds=_QUICK,
        ),
        Family(
            "shared_state_failures",
            "shared_state_failures",
            "counter",
            "Why what is shared was not reached.",
            {"reason": SHARED_STATE_REASONS},
        ),
        Family(
            "shared_state_local_decisions",
            "shared_state_local_decisions",
            "counter",
            "Sessions counted against this process's share of a limit, because what is shared was not reached.",
        ),
        Family(
            "shared_state_rejected",
            "shared_state_rejected_values",
            "counter",
            "Values found in the shared state that no popproxy has written: somebody else writes there.",
        ),
        Family("executor.limit", "executor_threads", "gauge", "Threads that the pool may have.", executor),
        Family("executor.queue_limit", "executor_queue_limit", "gauge", "Calls that may wait for a thread.", executor),
        Family("executor.busy", "executor_busy", "gauge", "Threads of the pool at work.", executor),
        Family("executor.queued", "executor_queue", "gauge", "Calls that wait for a thread.", executor),
        Family(
            "executor.abandoned", "executor_abandoned", "counter", "Calls that nobody waited for any more.", executor
        ),
        Family(
            "operator_commands",
            "operator_commands",
            "counter",
            "Commands of operators, by the way they came and what became of them.",
            {"via": ("socket", "ssh", "http"), "outcome": ("done", "denied", "failed")},
        ),
        Family(
            "audit_records",
            "audit_records",
            "counter",
            "Audit records written, or lost because the buffer was full.",
            {"sink": SINKS, "outcome": ("written", "dropped")},
        ),
        Family(
            "audit_write_failures",
            "audit_write_failures",
            "counter",
            "Failed writes of audit records.",
            {"sink": SINKS},
        ),
        Family(
            "audit_healthy", "audit_healthy", "gauge", "1 if the latest write of audit records succeeded.", merged="min"
        ),
        Family(
            "audit_pending",
            "audit_pending_bytes",
            "gauge",
            "Octets of audit records that wait to be written; 4 MiB is the most.",
            {"sink": SINKS},
        ),
        Family(
            "audit_last_checkpoint",
            "audit_last_signature_timestamp_seconds",
            "gauge",
            "When the audit log was last signed; 0 without audit.key.",
            merged="max",  # the sum of two times lies in the next century, and no alert would ever come
        ),
        Family(
            "audit_unsigned",
            "audit_unsigned_records",
            "gauge",
            "Audit records since the last signature; 0 without audit.key.",
        ),
        Family(
            "event_loop_lag",
            "event_loop_lag_seconds",
            "histogram",
            "How late a timer of the event loop was.",
            bounds=_LAG,
        ),
        Family(
            "config_last_reload_successful",
            "config_last_reload_successful",
            "gauge",
            "1 if the configuration was last read without error.",
            merged="min",
        ),
        Family(
            "config_last_reload_success_timestamp_seconds",
            "config_last_reload_success_timestamp_seconds",
            "gauge",
            "When the configuration in use was read.",
            merged="max",
        ),
        Family(
            "worker_restarts",
            "worker_restarts",
            "counter",
            "Worker processes that have died or hung, and were started again.",
        ),
    ]
