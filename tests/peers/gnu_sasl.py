"""GNU SASL through its C library, client and server: an oracle that shares no code with popproxy."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
from functools import cache
from typing import Literal

from tests.peers.process import PeerMissingError

_OK, _NEEDS_MORE = 0, 1
_NO_UNASSIGNED = 1  # called GSASL_ALLOW_UNASSIGNED, but saslprep.c of 2.2 makes libidn's STRINGPREP_NO_UNASSIGNED of it
_VALIDATE_SIMPLE, _AUTHENTICATION_ERROR = 500, 31
_PROPERTIES = {"authid": 1, "authzid": 2, "password": 3, "tls-unique": 18, "tls-exporter": 25}
Property = Literal["authid", "authzid", "password", "tls-unique", "tls-exporter"]


class GnuSaslError(Exception):
    """GNU SASL refuses what it was given; the text is its own."""


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libgsasl.so.18")
    except OSError:
        raise PeerMissingError("libgsasl is not installed; run: make setup") from None
    library.gsasl_strerror.restype = ctypes.c_char_p
    return library


def _checked(status: int) -> int:
    if status not in (_OK, _NEEDS_MORE):
        raise GnuSaslError(_library().gsasl_strerror(status).decode())
    return status


def saslprep(text: str, *, stored: bool) -> str:
    """SASLprep as libidn does it. Raises GnuSaslError."""
    library, result = _library(), ctypes.c_char_p()
    _checked(library.gsasl_saslprep(text.encode(), _NO_UNASSIGNED if stored else 0, ctypes.byref(result), None))
    prepared = (result.value or b"").decode()
    library.gsasl_free(result)
    return prepared


class GnuSaslClient:
    """One exchange. Properties are those of gsasl.h; channel bindings are octets, all else text."""

    def __init__(self, mechanism: str, **properties: str | bytes) -> None:
        library = self._library = _library()
        self._context, self._session = ctypes.c_void_p(), ctypes.c_void_p()
        _checked(library.gsasl_init(ctypes.byref(self._context)))
        _checked(library.gsasl_client_start(self._context, mechanism.encode(), ctypes.byref(self._session)))
        for name, value in properties.items():
            text = base64.b64encode(value) if isinstance(value, bytes) else value.encode()
            _checked(library.gsasl_property_set(self._session, _PROPERTIES[name.replace("_", "-")], text))
        self.done = False
        """The client is content: with SCRAM, the server has proved itself too."""

    def step(self, challenge: bytes) -> bytes:
        """The answer to a challenge. Raises GnuSaslError."""
        answer = ctypes.c_char_p()
        status = self._library.gsasl_step64(self._session, base64.b64encode(challenge), ctypes.byref(answer))
        self.done = _checked(status) == _OK
        octets = base64.b64decode(answer.value or b"")
        self._library.gsasl_free(answer)
        return octets

    def close(self) -> None:
        """Gives back its memory."""
        self._library.gsasl_finish(self._session)
        self._library.gsasl_done(self._context)


class GnuSaslServer:
    """One exchange with a client that sends a password. `seen` is authid, authzid and password, once it has."""

    def __init__(self, mechanism: str, password: str) -> None:
        library = self._library = _library()
        library.gsasl_property_fast.restype = ctypes.c_char_p
        self.seen: tuple[str, ...] = ()
        self._password = password
        self._context, self._session = ctypes.c_void_p(), ctypes.c_void_p()
        _checked(library.gsasl_init(ctypes.byref(self._context)))
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)(self._asked)
        library.gsasl_callback_set(self._context, self._callback)
        _checked(library.gsasl_server_start(self._context, mechanism.encode(), ctypes.byref(self._session)))

    def step(self, response: bytes) -> None:
        """Takes the client's only response. Raises GnuSaslError if it does not let the client in."""
        answer = ctypes.c_char_p()
        _checked(self._library.gsasl_step64(self._session, base64.b64encode(response), ctypes.byref(answer)))
        self._library.gsasl_free(answer)

    def close(self) -> None:
        """Gives back its memory."""
        self._library.gsasl_finish(self._session)
        self._library.gsasl_done(self._context)

    def _asked(self, _context: int, session: int, what: int) -> int:
        if what != _VALIDATE_SIMPLE:
            return _AUTHENTICATION_ERROR
        names = ("authid", "authzid", "password")
        found = [self._library.gsasl_property_fast(ctypes.c_void_p(session), _PROPERTIES[name]) for name in names]
        self.seen = tuple((value or b"").decode() for value in found)
        return _OK if self.seen[2] == self._password else _AUTHENTICATION_ERROR
