"""Accepts tickets by GSSAPI (RFC 2743, RFC 4121), whoever frames them: SASL GSSAPI (RFC 4752) or another protocol.

The calls of a context block: a keytab and a replay cache are files. `GssContext.advance` does them in the pool.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Final, cast

import gssapi
from gssapi import raw
from gssapi.raw.named_tuples import AcceptSecContextResult

from popproxy.errors import ConfigError, LocalProtocolError, Problem
from popproxy.kerberos.evidence import Evidence
from popproxy.kerberos.refusal import MAX_TOKEN, KerberosRefused, Refusal, reason_of
from popproxy.kerberos.service import SERVICE, ReplayCache, ServicePrincipals, check_keytab, diagnose
from popproxy.state.executors import BoundedExecutor

_KERBEROS: Final = gssapi.MechType.kerberos
_ROUTINE_ERRORS: Final = 0xFF0000  # of a major status (RFC 2744 section 3.9.1)
_FROM_MAJOR: Final = {
    1 << 16: Refusal.GARBAGE,  # GSS_S_BAD_MECH
    4 << 16: Refusal.CHANNEL_BINDING,  # GSS_S_BAD_BINDINGS
    6 << 16: Refusal.GARBAGE,  # GSS_S_BAD_SIG
    9 << 16: Refusal.GARBAGE,  # GSS_S_DEFECTIVE_TOKEN
    12 << 16: Refusal.EXPIRED,  # GSS_S_CONTEXT_EXPIRED
}
_SIGN: Final = 1 << 31


class DelegatedCredentials:
    """What a client has forwarded so that we may act for it. Only this package looks inside."""

    __slots__ = ("credentials",)

    def __init__(self, credentials: gssapi.Credentials) -> None:
        self.credentials = credentials

    def __repr__(self) -> str:
        return "DelegatedCredentials(****)"


class Acceptor:
    """The acceptor of a listener. The keytab is opened anew for every token, so new keys need no restart."""

    def __init__(
        self,
        keytab: Path,
        principals: Sequence[str],
        *,
        rcache_dir: Path,
        executor: BoundedExecutor,
        require_channel_binding: bool = False,
        max_token: int = MAX_TOKEN,
        delegation: bool = False,
    ) -> None:
        """Raises ConfigError for an unusable keytab or replay cache, or a name that is no ``pop/host``.

        With `delegation` contexts keep what it takes to act for the client.
        """
        self.principals = ServicePrincipals(tuple(principals))
        self.replay_cache = ReplayCache(rcache_dir)
        self.keytab = keytab
        self.executor = executor
        self.require_channel_binding = require_channel_binding
        self.max_token = max_token
        self.delegation = delegation
        check_keytab(keytab)
        store: dict[bytes | str, bytes | str] = {}
        store[b"keytab"] = f"FILE:{keytab}".encode()
        store[b"rcache"] = self.replay_cache.name.encode()
        # Only keys of the service are tried: where host/ and pop/ have one key, host/ would be reported otherwise.
        name = raw.import_name(SERVICE.encode(), gssapi.NameType.hostbased_service)
        try:
            acquired = raw.acquire_cred_from(store, name=name, mechs=[_KERBEROS], usage="accept")
        except raw.GSSError:
            what = f"the keytab has no key of a principal {SERVICE}/..."
            raise ConfigError([Problem(str(keytab), "", what, f"add {self.principals.names[0]} to it")]) from None
        self.credentials = acquired.creds

    def new_context(self, channel_binding: bytes | None = None) -> GssContext:
        """A fresh exchange.

        `channel_binding` is the application data of RFC 5056 with its prefix (``tls-server-end-point:`` + hash), or
        None where there is no TLS or bindings are off. MIT accepts clients that send none, and refuses others' ones.
        """
        return GssContext(self, channel_binding)


class GssContext:
    """One client's exchange, and after it the security layer. Used by one thread at a time."""

    __slots__ = (
        "_acceptor",
        "_bindings",
        "_context",
        "_failed",
        "channel_bound",
        "complete",
        "confidentiality",
        "delegated",
        "evidence",
        "initiator",
        "integrity",
        "lifetime",
        "mutual",
        "target",
    )

    def __init__(self, acceptor: Acceptor, channel_binding: bytes | None) -> None:
        self._acceptor = acceptor
        self._bindings = None if channel_binding is None else raw.ChannelBindings(application_data=channel_binding)
        self._context: raw.SecurityContext | None = None
        self._failed = False
        self.complete = False  # the client has proved who it is; what follows means nothing before
        self.mutual = False  # the client wanted us to prove ourselves, too
        # Fit for a layer, which needs sequence_req_flag (RFC 4752 section 3.1): or commands could be repeated.
        self.integrity = False  # wrap protects against changes, losses and repetitions
        self.confidentiality = False  # and can encrypt
        self.channel_bound = False  # the client has named the very channel that we gave
        self.initiator = ""  # the client's principal: alice@REALM, unusual characters behind a backslash
        self.target = ""  # the principal of ours whose key the ticket was made with
        self.lifetime = 0  # seconds that the ticket has left, with the clock skew allowed
        self.delegated: DelegatedCredentials | None = None
        self.evidence: Evidence | None = None

    async def advance(self, token: bytes) -> bytes | None:
        """`step` in a thread of the pool. Raises Unavailable, too; the context is then of no use any more."""
        try:
            return await self._acceptor.executor.run(self.step, token)
        except BaseException:
            self._failed = True
            raise

    def step(self, token: bytes) -> bytes | None:
        """Take the client's token; return the one to be sent back, if any. Raises KerberosRefused."""
        if self._failed or self.complete:
            raise LocalProtocolError("this GSSAPI exchange is over")
        try:
            return self._step(token)
        except BaseException:
            self._failed = True
            self._context = None
            raise

    def forget(self) -> None:
        """The login is over: drop what it takes to act for the client."""
        self.delegated = self.evidence = None

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        """Protect a message (RFC 2743 section 2.3.3). Raises KerberosRefused."""
        try:
            wrapped = raw.wrap(self._established(), data, confidential)
        except raw.GSSError as error:
            raise KerberosRefused(_from_major(error) or Refusal.UNAVAILABLE, temporary=True) from None
        if confidential and not wrapped.encrypted:
            raise KerberosRefused(Refusal.UNAVAILABLE, temporary=True)
        return wrapped.message

    def unwrap(self, token: bytes) -> tuple[bytes, bool]:
        """The message inside, and whether it was encrypted. Raises KerberosRefused, also when it comes out of turn."""
        context = self._established()
        if len(token) > self._acceptor.max_token + _WRAP_OVERHEAD:
            raise KerberosRefused(Refusal.GARBAGE)
        try:
            unwrapped = raw.unwrap(context, token)
        except raw.GSSError as error:
            out_of_turn = isinstance(error, raw.SupplementaryError)
            raise KerberosRefused(Refusal.REPLAY if out_of_turn else _from_major(error) or Refusal.GARBAGE) from None
        return unwrapped.message, unwrapped.encrypted

    def wrap_size_limit(self, token_size: int, *, confidential: bool) -> int:
        """Octets of a message whose token is at most `token_size` long; 0 if none fits."""
        return raw.wrap_size_limit(self._established(), token_size, confidential)

    def _step(self, token: bytes) -> bytes | None:
        acceptor = self._acceptor
        if not token or len(token) > acceptor.max_token:
            raise KerberosRefused(Refusal.GARBAGE)
        try:
            # Not gssapi.SecurityContext: it can return an error token as if all were well.
            result = raw.accept_sec_context(token, acceptor.credentials, None, self._bindings)
            if result.more_steps:
                # Kerberos is done after one token. MIT wants more after one with a wrong token id (RFC 4121 section
                # 4.1), and in the three-legged exchange of DCE, which SASL does not have.
                raise KerberosRefused(Refusal.GARBAGE)
            self._finish(result, token)
        except raw.GSSError as error:
            raise self._refusal(error) from None
        self._context = result.context
        return result.token or None

    def _finish(self, result: AcceptSecContextResult, token: bytes) -> None:
        acceptor = self._acceptor
        flags = cast("Container[raw.RequirementFlag]", result.flags)
        target = _text(_target(result.context))
        refusal = acceptor.principals.refuse(target)
        if refusal is not None:
            raise KerberosRefused(refusal)
        if result.mech != _KERBEROS:
            raise KerberosRefused(Refusal.GARBAGE)
        self.channel_bound = self._bindings is not None and raw.RequirementFlag.channel_bound in flags
        if acceptor.require_channel_binding and not self.channel_bound:
            raise KerberosRefused(Refusal.CHANNEL_BINDING)
        self.initiator = _text(result.initiator_name)
        self.target = target
        self.lifetime = int(result.lifetime or 0)
        self.mutual = raw.RequirementFlag.mutual_authentication in flags
        ordered = raw.RequirementFlag.out_of_sequence_detection in flags
        self.integrity = ordered and raw.RequirementFlag.integrity in flags
        self.confidentiality = ordered and raw.RequirementFlag.confidentiality in flags
        if acceptor.delegation:
            self.evidence = Evidence(token, target)
            if raw.RequirementFlag.delegate_to_peer in flags and result.delegated_creds is not None:
                self.delegated = DelegatedCredentials(gssapi.Credentials(result.delegated_creds))
        self.complete = True

    def _refusal(self, error: raw.GSSError) -> KerberosRefused:
        minor = error.min_code - (1 << 32) if error.min_code & _SIGN else error.min_code
        reason = _from_major(error) or reason_of(minor)
        reason, ours = diagnose(reason, self._acceptor.keytab, self._acceptor.replay_cache)
        return KerberosRefused(reason, temporary=ours, token=error.token or None)

    def _established(self) -> gssapi.SecurityContext:
        if self._failed or not self.complete or self._context is None:
            raise LocalProtocolError("there is no security layer before the exchange is complete")
        return cast("gssapi.SecurityContext", self._context)  # the stubs of gssapi.raw ask for the class above it


_WRAP_OVERHEAD: Final = 256  # header, confounder, checksum of RFC 4121, generously


def _target(context: raw.SecurityContext) -> raw.Name | None:
    """Nothing else is asked for: about the lifetime of a ticket that ended within the clock skew MIT gives an error."""
    asked = {"initiator_name": False, "lifetime": False, "mech": False, "flags": False}
    return raw.inquire_context(context, **asked, locally_init=False, complete=False).target_name


def _from_major(error: raw.GSSError) -> Refusal | None:
    return _FROM_MAJOR.get(error.maj_code & _ROUTINE_ERRORS)


def _text(name: raw.Name | None) -> str:
    """A principal as text. Raises KerberosRefused if it is no UTF-8 (RFC 4120 section 5.2.1 has ASCII only)."""
    if name is None:
        raise KerberosRefused(Refusal.GARBAGE)
    try:
        return raw.display_name(name, name_type=False).name.decode()
    except UnicodeDecodeError:
        raise KerberosRefused(Refusal.GARBAGE) from None
