"""Every exception that popproxy raises on purpose.

    PopproxyError
    ├── ConfigError            the configuration cannot be used; holds every problem found
    ├── ProtocolError          bytes or calls that POP3, SASL or a wire format does not allow
    │   ├── LocalProtocolError     ours: the caller drove a core wrongly (a bug)
    │   └── RemoteProtocolError    theirs: the peer sent what it may not send
    ├── ChannelError           a connection that failed
    │   ├── ConnectFailed          could not be opened
    │   ├── TlsFailed              the handshake failed or the peer's certificate was refused
    │   └── ChannelClosed          it ended while we still needed it
    ├── BackendError           the backend cannot serve this session; says at which stage and why
    ├── Overtaken              another backend was ready first: nothing is wrong with this one
    ├── Unavailable            a helper (pool of threads, directory, file) cannot answer just now
    ├── VaultError             the vault cannot be read or written
    └── AuditError             a record that must be written was not written

An exception never carries a secret: its text may reach a log.
"""

from __future__ import annotations

from dataclasses import dataclass


class PopproxyError(Exception):
    """Root of the tree."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration or the environment.

    `where` is ``file:line`` (or just a file, or empty for the environment), `key` the dotted key, `what` says what is
    wrong and `cure` what would be right.
    """

    where: str
    key: str
    what: str
    cure: str = ""

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.where, self.key, self.what) if part)
        return f"{head}; {self.cure}" if self.cure else head


class ConfigError(PopproxyError):
    """The configuration cannot be used. `problems` holds all of them, in file order."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class ProtocolError(PopproxyError):
    """Something the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """We drove a protocol core wrongly."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. `reason` is a short word for metrics and audit records."""

    def __init__(self, message: str, reason: str = "protocol") -> None:
        super().__init__(message)
        self.reason = reason


class ChannelError(PopproxyError):
    """A connection failed. `reason` is a short word for metrics and audit records."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConnectFailed(ChannelError):
    """A connection could not be opened."""


class TlsFailed(ChannelError):
    """A TLS handshake failed or the peer's certificate was refused."""


class ChannelClosed(ChannelError):
    """A connection ended while we still needed it."""


class BackendError(PopproxyError):
    """The backend cannot serve this session.

    `stage` is one of ``connect greeting tls capa login relay update``; `reason` a short word; `code` the response
    code that the client is to see (RFC 2449 section 8, RFC 3206), without brackets.
    """

    def __init__(self, message: str, stage: str, reason: str, code: str = "SYS/TEMP") -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.code = code


class Overtaken(PopproxyError):
    """Another backend was ready for this session's login first."""


class Unavailable(PopproxyError):
    """A helper cannot answer just now; never to be taken for a refusal. `reason` is a short word."""

    def __init__(self, message: str, reason: str = "unavailable") -> None:
        super().__init__(message)
        self.reason = reason


class VaultError(PopproxyError):
    """The vault cannot be opened, read or written."""


class AuditError(PopproxyError):
    """A record that must be on disk before we may go on could not be written."""
