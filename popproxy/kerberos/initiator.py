"""The initiator's end of a GSS context (RFC 2743, RFC 4121): popproxy proves to a backend for whom it comes.

The first step may ask the KDC, so `advance` takes it in the pool. The target is a principal, never a host name that the
library would look up: whoever owns the name service would choose to whom we speak.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, cast

import gssapi
from gssapi import raw

from popproxy.errors import BackendError, LocalProtocolError
from popproxy.kerberos.refusal import KerberosRefused, Refusal
from popproxy.state.executors import BoundedExecutor

_KERBEROS: Final = gssapi.MechType.kerberos
_Flag = raw.RequirementFlag
_FLAGS: Final = (
    _Flag.mutual_authentication
    | _Flag.replay_detection
    | _Flag.out_of_sequence_detection
    | _Flag.integrity
    | _Flag.confidentiality
)
"""What is asked for. Delegation is not: what the backend may do is the KDC's affair."""


class Credentials(Protocol):
    """Whatever gives credentials for one login."""

    def acquire(self) -> gssapi.Credentials:
        """The credentials. Blocks. Raises DelegationFailed."""
        ...

    def failed(self, error: raw.GSSError, target: str) -> Exception:
        """What it means that there is no ticket for `target`. Blocks."""
        ...


class Initiator:
    """One exchange with a server, and after it the security layer. Used by one thread at a time."""

    __slots__ = (
        "_bindings",
        "_context",
        "_executor",
        "_over",
        "_source",
        "_target",
        "complete",
        "confidentiality",
        "integrity",
        "mutual",
    )

    def __init__(
        self, source: Credentials, target: str, channel_binding: bytes | None, executor: BoundedExecutor
    ) -> None:
        """`target` is a principal; `channel_binding` as in `Acceptor.new_context`."""
        self._source: Credentials | None = source
        self._target = target
        self._bindings = None if channel_binding is None else raw.ChannelBindings(application_data=channel_binding)
        self._executor = executor
        self._context: raw.SecurityContext | None = None
        self._over = False
        self.complete = False  # the server has proved who it is; what follows means nothing before
        self.mutual = False
        self.integrity = False  # wrap protects against changes, losses and repetitions
        self.confidentiality = False  # and can encrypt

    async def advance(self, token: bytes | None) -> bytes | None:
        """`step` in a thread of the pool. Raises Unavailable, too; the context is then of no use any more."""
        try:
            return await self._executor.run(self.step, token)
        except BaseException:
            self._over = True
            raise

    def step(self, token: bytes | None) -> bytes | None:
        """Take the server's token (None at the start); return the next one, if there is one.

        Raises DelegationFailed at the start, BackendError for a server that cannot prove itself.
        """
        if self._over or self.complete or (token is None) != (self._context is None):
            raise LocalProtocolError("this GSSAPI exchange is over, or has not begun")
        try:
            return self._first() if token is None else self._next(token)
        except BaseException:
            self._over = True
            self._context = None
            raise

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        """Protect a message (RFC 2743 section 2.3.3). Raises KerberosRefused."""
        try:
            wrapped = raw.wrap(self._established(), data, confidential)
        except raw.GSSError:
            raise KerberosRefused(Refusal.UNAVAILABLE, temporary=True) from None
        if confidential and not wrapped.encrypted:
            raise KerberosRefused(Refusal.UNAVAILABLE, temporary=True)
        return wrapped.message

    def unwrap(self, token: bytes) -> tuple[bytes, bool]:
        """The message inside, and whether it was encrypted. Raises KerberosRefused, also when it comes out of turn."""
        try:
            unwrapped = raw.unwrap(self._established(), token)
        except raw.GSSError as error:
            out_of_turn = isinstance(error, raw.SupplementaryError)
            raise KerberosRefused(Refusal.REPLAY if out_of_turn else Refusal.GARBAGE) from None
        return unwrapped.message, unwrapped.encrypted

    def wrap_size_limit(self, token_size: int, *, confidential: bool) -> int:
        """Octets of a message whose token is at most `token_size` long; 0 if none fits."""
        return raw.wrap_size_limit(self._established(), token_size, confidential)

    def _first(self) -> bytes | None:
        source, self._source = self._source, None  # the context may live as long as the session: tickets need not
        assert source is not None
        credentials = source.acquire()
        try:
            return self._initiate(credentials, None)
        except raw.GSSError as error:
            failure = source.failed(error, self._target)
        raise failure

    def _next(self, token: bytes) -> bytes | None:
        try:
            return self._initiate(None, token)
        except raw.GSSError:
            raise BackendError("the server cannot prove that it is the one we want", "login", "protocol") from None

    def _initiate(self, credentials: gssapi.Credentials | None, token: bytes | None) -> bytes | None:
        name = raw.import_name(self._target.encode(), gssapi.NameType.kerberos_principal)
        result = raw.init_sec_context(name, credentials, self._context, _KERBEROS, _FLAGS, None, self._bindings, token)
        self._context = result.context
        if not result.more_steps:
            flags = frozenset(cast("Iterable[raw.RequirementFlag]", result.flags))
            self.mutual = _Flag.mutual_authentication in flags
            self.integrity = _Flag.out_of_sequence_detection in flags and _Flag.integrity in flags
            self.confidentiality = self.integrity and _Flag.confidentiality in flags
            self.complete = True
        return result.token or None

    def _established(self) -> gssapi.SecurityContext:
        if self._over or not self.complete or self._context is None:
            raise LocalProtocolError("there is no security layer before the exchange is complete")
        return cast("gssapi.SecurityContext", self._context)
