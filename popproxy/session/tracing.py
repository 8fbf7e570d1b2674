"""Users whose dialogues somebody watches. Costs a session one look at an empty dictionary, at its login and its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Literal, Protocol

from popproxy.auth.names import NameRefused
from popproxy.net.tapped import Tap
from popproxy.pop3.transcript import Transcript
from popproxy.sasl.credentials import Credential
from popproxy.types import Address, CloseReason

KEPT = 2000
"""Events kept for an operator who does not keep up; the oldest go first."""

Kind = Literal["client", "server", "note"]


class Traceable(Protocol):
    """A session, as far as it can be traced."""

    @property
    def id(self) -> str:
        """Of the session, as in the audit log."""
        ...

    @property
    def user(self) -> str:
        """Who has logged in; empty before."""
        ...

    @property
    def source(self) -> Address:
        """Where the client is."""
        ...

    def tap(self, tap: Tap) -> None:
        """Have everything from now on go by `tap`."""
        ...

    def untap(self) -> None:
        """No longer."""
        ...


class Trace:
    """The events of one user, for one operator."""

    def __init__(self) -> None:
        self._lost = 0
        self._events: deque[dict[str, object]] = deque(maxlen=KEPT)

    def put(self, event: dict[str, object]) -> None:
        """One more event."""
        self._lost += len(self._events) == KEPT
        self._events.append(event)

    def take(self) -> list[dict[str, object]]:
        """The events since the last call."""
        events = [*self._events]
        self._events.clear()
        if self._lost:
            events.insert(0, _event("note", f"{self._lost} events left out: they came too fast"))
            self._lost = 0
        return events


class Tracing:
    """All traces of this process."""

    def __init__(self) -> None:
        self._traces: dict[str, list[Trace]] = {}
        self._taps: dict[str, tuple[Traceable, _SessionTap]] = {}  # by session

    @property
    def active(self) -> bool:
        """Does anybody trace anybody?"""
        return bool(self._traces)

    def begin(self, user: str, sessions: Iterable[Traceable]) -> Trace:
        """Watch a user (canonical name); `sessions` are those that he has open."""
        trace = Trace()
        self._traces.setdefault(user, []).append(trace)
        for session in sessions:
            self._listen(session)
        return trace

    def end(self, user: str, trace: Trace) -> None:
        """Watch no more."""
        traces = self._traces[user]
        traces.remove(trace)
        if traces:
            return
        del self._traces[user]
        for session, _ in [found for found in self._taps.values() if found[1].user == user]:
            session.untap()
            del self._taps[session.id]

    # ---- from sessions ----

    def logged_in(self, session: Traceable) -> None:
        """A session has an open maildrop."""
        if session.user in self._traces:
            self._listen(session)

    def refused(
        self, session: str, source: Address, credential: Credential, vet: Callable[[Credential], str], answer: str
    ) -> None:
        """A login has failed; whose it was is what the client has said."""
        try:
            user = vet(credential)
        except NameRefused:
            return
        if user in self._traces:
            self._say(user, session, source, "client", f"(login by {credential.mechanism})")
            self._say(user, session, source, "server", f"-ERR {answer}")

    def ended(self, session: str, reason: CloseReason) -> None:
        """A session is over."""
        traced, tap = self._taps.pop(session, (None, None))
        if traced is not None and tap is not None:
            tap.say("note", f"the session has ended: {reason}")

    # ---- pieces ----

    def _listen(self, session: Traceable) -> None:
        if session.id not in self._taps:
            tap = _SessionTap(self, session)
            self._taps[session.id] = session, tap
            session.tap(tap)

    def _say(self, user: str, session: str, source: Address, kind: Kind, text: str, octets: int = 0) -> None:
        event = _event(kind, text, session=session, address=str(source), octets=octets)
        for trace in self._traces.get(user, ()):
            trace.put(event)


class _SessionTap:
    """What one session says, told to all who trace its user."""

    def __init__(self, tracing: Tracing, session: Traceable) -> None:
        self.user = session.user
        self._tracing = tracing
        self._session = session.id
        self._source = session.source
        self._transcript: Transcript | None = None  # until no reply is awaited

    def say(self, kind: Kind, text: str, octets: int = 0) -> None:
        """Tell it."""
        self._tracing._say(self.user, self._session, self._source, kind, text, octets)

    def from_client(self, data: bytes, idle: bool) -> None:
        """See Tap."""
        if idle:
            if self._transcript is None:
                self._transcript = Transcript()
            self._transcript.restart()
        if self._transcript is not None:
            for _, text, octets in self._transcript.from_client(data):
                self.say("client", text, octets)

    def to_client(self, data: bytes) -> None:
        """See Tap."""
        if self._transcript is not None:
            for _, text, octets in self._transcript.to_client(data):
                self.say("server", text, octets)


def _event(kind: Kind, text: str, **more: object) -> dict[str, object]:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"at": at, "kind": kind, "text": text, **more}
