"""The audit records of one session. Called once per message, so each method is one format and one append."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import Literal, Protocol

from popproxy.errors import LocalProtocolError
from popproxy.observe.audit_render import UniqueIds, json_string
from popproxy.types import Address, AuthFailure, CloseReason, Identity, Mechanism, Outcome, SessionId, TlsInfo

Deleted = Sequence[tuple[int, bytes | None]]
"""Messages marked as deleted: message number, and unique-id where the session has seen it."""

UpdateOutcome = Literal["committed", "refused", "unknown"]
"""What came of QUIT (RFC 1939 section 6): +OK, -ERR (some messages may be gone), no answer."""

LISTED_PER_RECORD = 500
"""A longer list is spread over several records, lest one record become too large to keep."""

_UPDATE: dict[UpdateOutcome, tuple[str, str]] = {
    "committed": ("success", "true"),
    "refused": ("failure", '"partial"'),
    "unknown": ("unknown", '"unknown"'),
}
_END_OUTCOMES = {
    CloseReason.LOGOUT: Outcome.SUCCESS,
    CloseReason.QUIT_BEFORE_LOGIN: Outcome.SUCCESS,
    CloseReason.UPDATE_UNKNOWN: Outcome.UNKNOWN,
}

# Rendered beforehand: to format a member of an enumeration takes longer than all the rest of a record.
_AUTH = {
    outcome: f'"event.action":"auth","event.category":["authentication"],"event.outcome":"{outcome}",'
    for outcome in Outcome
}
_AUTH_REASON = {reason: f'"event.reason":"{reason}",' for reason in AuthFailure} | {AuthFailure.NONE: ""}
_MECHANISM = {mechanism: f'"auth.mechanism":"{mechanism}",' for mechanism in Mechanism}
_END = {
    reason: '"event.action":"session_end","event.category":["session"],"event.type":["end"],'
    f'"event.outcome":"{_END_OUTCOMES.get(reason, Outcome.FAILURE)}","event.reason":"{reason}",'
    for reason in CloseReason
}


class Recorder(Protocol):
    """What a trail needs of the log."""

    def record(self, fields: str) -> None:
        """Keep a record: JSON members from ``"event.action"`` on, without braces."""
        ...

    def user_field(self, user: str, disclose: bool) -> str:
        """The JSON member that names a claimed user, or its keyed hash."""
        ...

    @property
    def unique_ids(self) -> UniqueIds:
        """How messages are named."""
        ...


class AuditTrail:
    """Records of one session, made by `AuditLog.trail`. What all of them share is rendered once."""

    __slots__ = ("_ended", "_log", "_session", "_tls")

    def __init__(
        self, log: Recorder, session_id: SessionId, listener: str, source: Address, proxied_by: Address | None
    ) -> None:
        self._log = log
        self._tls = ""  # members of the records that speak of TLS, each followed by a comma
        self._ended = False
        proxy = "" if proxied_by is None else _endpoint("client.nat.ip", "client.nat.port", proxied_by)
        self._session = (  # members that stand in every record, each followed by a comma
            f'"session.id":{json_string(session_id)},"popproxy.listener":{json_string(listener)},'
            f"{_endpoint('source.ip', 'source.port', source)}{proxy}"
        )

    def tls(self, info: TlsInfo) -> None:
        """TLS is up: auth, login and session_end say so."""
        self._tls = _tls_members(info.version, info.cipher)

    def take_over(self, before: AuditTrail, front_session: str) -> None:
        """A front has said who its client is: this trail goes on where `before`, the front's own, ends.

        `front_session`: the front's name for the session, "" if it has none.
        """
        self._tls = before._tls
        if front_session:
            self._session += f'"popproxy.front_session":{json_string(front_session)},'

    def client_certificate(self, subject: str, fingerprint: str) -> None:
        """The client has shown a certificate that TLS has verified: its subject, and its SHA-256 in hex."""
        self._tls += f'"tls.client.subject":{json_string(subject)},"tls.client.hash.sha256":"{fingerprint}",'

    def auth(self, outcome: Outcome, reason: AuthFailure, mechanism: Mechanism, user: str, known: bool) -> None:
        """A credential was judged. `user` is the name as claimed; `known` says that an account of that name exists."""
        self._log.record(
            f"{_AUTH[outcome]}{_AUTH_REASON[reason]}{self._session}{self._tls}{_MECHANISM[mechanism]}"
            + self._log.user_field(user, known or outcome is Outcome.SUCCESS)
        )

    def login(
        self, identity: Identity, mailbox: str, pool: str, backend: Address, strategy: str = "forward",
        ends: date | None = None, protection: str = "none",
    ) -> None:  # fmt: skip
        """The maildrop is open by `strategy`. User and backend stand in every record from here on.

        `ends`: the last day on which the mechanism can be used, if the policy gives it up. `protection`: of the link to
        the backend, as ``TLS 1.2``.
        """
        self._session += (
            f'"user.name":{json_string(identity.user)},"popproxy.pool":{json_string(pool)},'
            f"{_endpoint('destination.address', 'destination.port', backend)}"
        )
        claimed = "" if identity.authcid == identity.user else f'"user.authcid":{json_string(identity.authcid)},'
        if identity.principal:
            claimed += f'"krb5.principal":{json_string(identity.principal)},'
        if ends is not None:
            claimed += f'"popproxy.mechanism_until":"{ends}",'
        self._log.record(
            f'"event.action":"login","event.category":["authentication"],"event.type":["start"],"event.outcome":"success",'
            f"{self._session}{self._tls}{claimed}{_MECHANISM[identity.mechanism]}"
            f'"popproxy.strategy":"{strategy}","popproxy.server_protection":"{protection}",'
            f'"popproxy.mailbox":{json_string(mailbox)}'
        )

    def backend_failure(self, stage: str, reason: str, backend: str, strategy: str = "") -> None:
        """The backend failed us at `stage` (see BackendError): action ``backend_connect``, ``backend_login`` ...

        `strategy`: how we tried to log in, if it came to that.
        """
        tried = f'"popproxy.strategy":"{strategy}",' if strategy else ""
        self._log.record(
            f'"event.action":{json_string(f"backend_{stage}")},"event.outcome":"failure",'
            f'"event.reason":{json_string(reason)},{self._session}{tried}"popproxy.backend":{json_string(backend)}'
        )

    def message(
        self, verb: str, number: int, unique_id: bytes | None, octets: int, complete: bool, lines: int | None = None
    ) -> None:
        """RETR or TOP sent a message to the client: `octets` as relayed, cut unless `complete`; `lines` of TOP."""
        self._log.record(
            f'"event.action":"{verb.lower()}","event.outcome":"{"success" if complete else "failure"}",{self._session}'
            f"{'' if unique_id is None else self._message_id(unique_id)}{'' if lines is None else _lines(lines)}"
            f'"pop3.message_number":{number},"pop3.octets":{octets},"pop3.complete":{"true" if complete else "false"}'
        )

    def refused(self, verb: str, number: int, unique_id: bytes | None) -> None:
        """The backend answered -ERR to RETR, TOP or DELE."""
        self._log.record(
            f'"event.action":"{verb.lower()}","event.outcome":"failure","event.reason":"backend_refused",{self._session}'
            f'{"" if unique_id is None else self._message_id(unique_id)}"pop3.message_number":{number}'
        )

    def dele(self, number: int, unique_id: bytes | None) -> None:
        """The backend has marked a message as deleted."""
        self._log.record(
            f'"event.action":"dele","event.outcome":"success",{self._session}'
            f'{"" if unique_id is None else self._message_id(unique_id)}"pop3.message_number":{number}'
        )

    def reset(self, count: int) -> None:
        """RSET has taken back `count` deletions."""
        self._log.record(f'"event.action":"rset","event.outcome":"success",{self._session}"pop3.restored":{count}')

    def update(self, outcome: UpdateOutcome, deleted: Deleted) -> None:
        """QUIT in TRANSACTION: what became of the `deleted` messages."""
        result, committed = _UPDATE[outcome]
        head = f'"event.action":"update","event.outcome":"{result}",{self._session}"pop3.committed":{committed},'
        for part in self._listed("deleted", deleted):
            self._log.record(head + part)

    def end(
        self,
        reason: CloseReason,
        *,
        retr: int,
        top: int,
        dele: int,
        bytes_in: int,
        bytes_out: int,
        duration: float,
        committed: bool | None,
        abandoned: Deleted,
    ) -> None:
        """The session is over: the one ``session_end`` record. Raises LocalProtocolError the second time.

        `retr`, `top` and `dele` count messages, `bytes_in` octets from the client, `bytes_out` octets to it;
        `duration` is in seconds (in the record in nanoseconds, as ECS has it). `committed` None stands for unknown
        after an update without answer, otherwise for a session that had nothing to commit. `abandoned` are the
        deletions that an end without QUIT has undone; if they are too many for one record, ``deletions_abandoned``
        records come first.
        """
        if self._ended:
            raise LocalProtocolError(f"session_end recorded twice, now for {reason}")
        self._ended = True
        self._log.record(
            f"{_END[reason]}{self._session}{self._tls}{_committed(reason, committed)}"
            f'"event.duration":{int(duration * 1e9)},'
            f'"pop3.retr":{retr},"pop3.top":{top},"pop3.dele":{dele},"pop3.bytes_in":{bytes_in},"pop3.bytes_out":{bytes_out}'
            + self._abandoned(abandoned)
        )

    def _abandoned(self, messages: Deleted) -> str:
        """The members of session_end on `messages`, each after a comma; a long list is recorded on its own."""
        if not messages:
            return ""
        parts = list(self._listed("abandoned", messages))
        if len(parts) == 1:
            return f",{parts[0]}"
        for part in parts:
            self._log.record(f'"event.action":"deletions_abandoned","event.outcome":"failure",{self._session}{part}')
        return f',"pop3.abandoned_total":{len(messages)}'

    def _message_id(self, unique_id: bytes) -> str:
        member = self._log.unique_ids.member("pop3.unique_id", unique_id)
        return f"{member}," if member else ""

    def _listed(self, name: str, messages: Deleted) -> Iterator[str]:
        """The members that list `messages`, at least one part; ``pop3.part`` numbers several parts from 1."""
        several = len(messages) > LISTED_PER_RECORD
        for part, start in enumerate(range(0, max(1, len(messages)), LISTED_PER_RECORD), 1):
            items = ",".join(map(self._listed_one, messages[start : start + LISTED_PER_RECORD]))
            which = f'"pop3.part":{part},' if several else ""
            yield f'{which}"pop3.{name}_total":{len(messages)},"pop3.{name}":[{items}]'

    def _listed_one(self, message: tuple[int, bytes | None]) -> str:
        number, unique_id = message
        member = "" if unique_id is None else self._log.unique_ids.member("unique_id", unique_id)
        return f'{{"number":{number},{member}}}' if member else f'{{"number":{number}}}'


@lru_cache(maxsize=64)  # also shares the text between sessions
def _tls_members(version: str, cipher: str) -> str:
    """ECS parts ``TLSv1.3`` into the number and the name of the protocol, in lower case."""
    protocol, _, number = version.lower().partition("v")
    return (
        f'"tls.version":{json_string(number)},"tls.version_protocol":{json_string(protocol)},'
        f'"tls.cipher":{json_string(cipher)},'
    )


def _endpoint(host: str, port: str, address: Address) -> str:
    return f'"{host}":{json_string(address.host)},"{port}":{address.port},'


def _committed(reason: CloseReason, committed: bool | None) -> str:
    if committed is None:
        return '"pop3.committed":"unknown",' if reason is CloseReason.UPDATE_UNKNOWN else ""
    return f'"pop3.committed":{"true" if committed else "false"},'


def _lines(lines: int) -> str:
    return f'"pop3.lines":{lines},'
