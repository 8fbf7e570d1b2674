"""What metrics and audit log are told of a session's TRANSACTION and UPDATE: a call for each command or chunk."""

from __future__ import annotations

from popproxy.observe.audit_trail import AuditTrail, UpdateOutcome
from popproxy.observe.metrics import Metrics
from popproxy.pop3.exchange import Exchange
from popproxy.pop3.exchanged import Exchanged
from popproxy.pop3.states import State
from popproxy.types import CloseReason

_COMMITTED = {"committed": True, "refused": False, "unknown": None}


class Books:
    """Of one session. `octets` are those from the client and to it so far, of the login."""

    __slots__ = (
        "_backend", "_committed", "_dele", "_exchange", "_listener", "_metrics", "_retr", "_top", "_trail",
        "bytes_in", "bytes_out",
    )  # fmt: skip

    def __init__(
        self, metrics: Metrics, trail: AuditTrail, listener: str, backend: str, exchange: Exchange,
        octets: tuple[int, int],
    ) -> None:  # fmt: skip
        self._metrics = metrics
        self._trail = trail
        self._listener = listener
        self._backend = backend
        self._exchange = exchange
        self.bytes_in, self.bytes_out = octets
        self._retr = self._top = self._dele = 0
        self._committed: bool | None = False

    def opened(self) -> None:
        """TRANSACTION begins."""
        self._metrics.sessions[(self._listener, "transaction")] += 1

    def asked(self, octets: int) -> None:
        """Commands go to the backend."""
        self._metrics.bytes_to_backend += octets

    def sent(self, octets: int) -> None:
        """Octets go to the client."""
        self.bytes_out += octets
        self._metrics.bytes_to_client += octets

    def complete(self, *, delivered: bool) -> Exchanged | None:
        """Account for the replies that are now complete, and `delivered` to the client's socket.

        Returns QUIT if it is among them: what came of it is for `updated`.
        """
        exchange, trail, metrics = self._exchange, self._trail, self._metrics
        events, exchange.events = exchange.events, []
        for event in events:
            verb, number = event.verb, event.number
            metrics.commands[(verb, "ok" if event.ok else "err")] += 1
            if number is None:  # also of what the proxy has refused itself
                if verb == "QUIT":
                    return event  # a barrier: nothing comes behind it
                if verb == "RSET" and event.ok:
                    trail.reset(event.restored)
            elif verb == "RETR" or verb == "TOP":  # noqa: PLR1714 - twice as fast
                if not event.ok:
                    trail.refused(verb, number, exchange.unique_id(number))
                    continue
                trail.message(verb, number, exchange.unique_id(number), event.octets, delivered, event.top_lines)
                if not delivered:
                    metrics.truncated[verb] += 1
                    continue
                metrics.messages[verb] += 1
                if verb == "RETR":
                    self._retr += 1
                else:
                    self._top += 1
            elif verb == "DELE":
                if event.ok:
                    self._dele += 1
                    trail.dele(number, exchange.unique_id(number))
                else:
                    trail.refused(verb, number, exchange.unique_id(number))
        return None

    def cut(self) -> None:
        """What is under way will not be completed: a message that the client has a part of is on record as such."""
        cut = self._exchange.cut()
        if cut is not None and cut.number is not None:
            number = cut.number
            self._trail.message(cut.verb, number, self._exchange.unique_id(number), cut.octets, False, cut.top_lines)
            self._metrics.truncated[cut.verb] += 1

    def updating(self) -> None:
        """QUIT goes to the backend."""
        self._metrics.sessions[(self._listener, "transaction")] -= 1
        self._metrics.sessions[(self._listener, "update")] += 1

    def updated(self, outcome: UpdateOutcome) -> None:
        """What came of QUIT."""
        deleted = list(self._exchange.deleted.items())
        self._trail.update(outcome, deleted)
        self._metrics.update[outcome] += 1
        self._metrics.deletions[outcome] += len(deleted)
        self._committed = _COMMITTED[outcome]

    def backend_gone(self, stage: str, why: str) -> None:
        """There is no backend any more."""
        self._trail.backend_failure(stage, why, self._backend)
        self._metrics.backend_errors[(self._backend, stage, why)] += 1

    def trouble_told(self) -> None:
        """The client is told ``[SYS/TEMP]``."""
        self._metrics.response_codes["SYS/TEMP"] += 1

    def closed(self, reason: CloseReason, seconds: float) -> None:
        """The session is over, after so many `seconds`. R6: to be called once."""
        exchange, metrics = self._exchange, self._metrics
        in_update = exchange.state in (State.UPDATE, State.CLOSED)
        metrics.sessions[(self._listener, "update" if in_update else "transaction")] -= 1
        abandoned = [] if in_update else list(exchange.deleted.items())
        if abandoned:
            metrics.deletions["abandoned"] += len(abandoned)
        self._trail.end(
            reason,
            retr=self._retr,
            top=self._top,
            dele=self._dele,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            duration=seconds,
            committed=self._committed,
            abandoned=abandoned,
        )
