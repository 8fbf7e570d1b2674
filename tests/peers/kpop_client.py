"""A KPOP client. Its handshake is MIT's own `krb5_sendauth`, called on a socket; after it, POP3 line by line.

Nothing is read from the environment: configuration and credential cache are arguments, so that clients of several
realms live side by side in one process.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from popproxy.wire.kpop import APPLICATION_VERSION, SENDAUTH_VERSION
from tests.peers.line_client import LineClient

BAD_SENDAUTH_VERSION = -1765328180
BAD_APPLICATION_VERSION = -1765328179
REJECTED = -1765328177
_MUTUAL_REQUIRED = 0x20000000


class KpopRefusedError(Exception):
    """krb5_sendauth failed with `code`; `wire_code` is the error-code of the server's KRB-ERROR, if there was one."""

    def __init__(self, code: int, wire_code: int | None, text: str) -> None:
        super().__init__(f"krb5_sendauth: {text} ({code}, KRB-ERROR {wire_code})")
        self.code = code
        self.wire_code = wire_code


class _KrbError(ctypes.Structure):
    """The beginning of krb5_error."""

    _fields_ = (
        ("magic", ctypes.c_int32),
        ("ctime", ctypes.c_int32),
        ("cusec", ctypes.c_int32),
        ("susec", ctypes.c_int32),
        ("stime", ctypes.c_int32),
        ("error", ctypes.c_uint32),
    )


class KpopClient(LineClient):
    """A client whose first act is `authenticate`. `service` is a principal: ``pop/localhost@REALM``."""

    def authenticate(
        self, config: Path, ccache: Path, service: str, *, mutual: bool = True, version: bytes = APPLICATION_VERSION
    ) -> None:
        """krb5_sendauth. Raises KpopRefusedError. Mutual: the server's proof is verified, too."""
        self.socket.setblocking(True)  # the library reads the descriptor itself; the server's own deadline ends it
        try:
            with _krb5(config) as (krb5, context):
                _sendauth(krb5, context, self.socket.fileno(), ccache, service, mutual, version)
        finally:
            self.socket.settimeout(self._seconds)


def framed(message: bytes) -> bytes:
    """A message behind its length, as sendauth writes it."""
    return len(message).to_bytes(4, "big") + message


def hello(ap_req: bytes) -> bytes:
    """The whole of the client's side in one buffer, as the Macintosh's clients write it."""
    return framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION) + framed(ap_req)


def error_code(krb_error: bytes) -> int:
    """[6] error-code of a KRB-ERROR (RFC 4120 section 5.9.1), small enough for one octet."""
    assert krb_error[0] == 0x7E, "no KRB-ERROR"
    return krb_error[krb_error.index(b"\xa6\x03\x02\x01") + 4]


@contextlib.contextmanager
def _krb5(config: Path) -> Iterator[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    """The library, and a context that knows `config` and nothing else."""
    krb5 = ctypes.CDLL("libkrb5.so.3")
    krb5.krb5_get_error_message.restype = ctypes.c_void_p
    profile, context = ctypes.c_void_p(), ctypes.c_void_p()
    _check(krb5.profile_init_path(str(config).encode(), ctypes.byref(profile)), "profile_init_path")
    try:
        _check(krb5.krb5_init_context_profile(profile, 0, ctypes.byref(context)), "krb5_init_context_profile")
    finally:
        krb5.profile_release(profile)
    try:
        yield krb5, context
    finally:
        krb5.krb5_free_context(context)


def _sendauth(
    krb5: ctypes.CDLL,
    context: ctypes.c_void_p,
    descriptor: int,
    ccache: Path,
    service: str,
    mutual: bool,
    version: bytes,
) -> None:
    cache, client, server = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    exchange, proof = ctypes.c_void_p(), ctypes.c_void_p()
    refusal = ctypes.c_void_p()
    _check(krb5.krb5_cc_resolve(context, f"FILE:{ccache}".encode(), ctypes.byref(cache)), "krb5_cc_resolve")
    try:
        _check(krb5.krb5_cc_get_principal(context, cache, ctypes.byref(client)), "krb5_cc_get_principal")
        _check(krb5.krb5_parse_name(context, service.encode(), ctypes.byref(server)), "krb5_parse_name")
        code = krb5.krb5_sendauth(
            context,
            ctypes.byref(exchange),
            ctypes.byref(ctypes.c_int(descriptor)),
            version.rstrip(b"\0"),
            client,
            server,
            ctypes.c_int32(_MUTUAL_REQUIRED if mutual else 0),
            None,
            None,
            cache,
            ctypes.byref(refusal),
            ctypes.byref(proof),
            None,
        )
        wire_code = _KrbError.from_address(refusal.value).error if refusal.value else None
        text = _message(krb5, context, code)
    finally:
        if refusal.value:
            krb5.krb5_free_error(context, refusal)
        krb5.krb5_free_ap_rep_enc_part(context, proof)
        krb5.krb5_auth_con_free(context, exchange)
        krb5.krb5_free_principal(context, server)
        krb5.krb5_free_principal(context, client)
        krb5.krb5_cc_close(context, cache)
    if code:
        raise KpopRefusedError(code, wire_code, text)


def _message(krb5: ctypes.CDLL, context: ctypes.c_void_p, code: int) -> str:
    pointer = krb5.krb5_get_error_message(context, code)
    text = ctypes.string_at(pointer).decode(errors="replace")
    krb5.krb5_free_error_message(context, ctypes.c_void_p(pointer))
    return text


def _check(code: int, function: str) -> None:
    assert code == 0, f"{function} failed with {code}"
