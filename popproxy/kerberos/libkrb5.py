"""The few functions of MIT's libkrb5 that popproxy calls, through ctypes.

python-gssapi cannot answer an AP-REQ that has no GSSAPI framing (KPOP), and no binding from PyPI can; ctypes needs no
compiler and releases the interpreter lock during the call. The library is named by its soname: find_library may give
Heimdal's, whose structures differ. The structures and prototypes are those of <krb5/krb5.h>, unchanged since 1.18;
k5_rc_resolve stands in no header, but the GSSAPI library, a package of its own, links to it under the same soname.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_int32, c_size_t, c_uint, c_uint8, c_uint32, c_void_p
from typing import Any, Final

from popproxy.errors import PopproxyError, Unavailable

_SONAME: Final = "libkrb5.so.3"

AP_OPTS_MUTUAL_REQUIRED: Final = 0x20000000
_NT_SRV_HST: Final = 3
CREDS_SIZE: Final = 512
"""More than sizeof(krb5_creds), 120 on 64-bit machines; it is handled by the library only, but for its beginning."""


class Krb5Failure(PopproxyError):
    """A function of the library failed. `code` is a krb5_error_code or an errno; the library's text is not kept."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} failed with {code}")
        self.code = code


class Data(ctypes.Structure):
    """krb5_data."""

    _fields_ = (("magic", c_int32), ("length", c_uint), ("data", c_void_p))


class EncData(ctypes.Structure):
    """krb5_enc_data."""

    _fields_ = (("magic", c_int32), ("enctype", c_int32), ("kvno", c_uint), ("ciphertext", Data))


class Transited(ctypes.Structure):
    """krb5_transited."""

    _fields_ = (("magic", c_int32), ("tr_type", c_uint8), ("tr_contents", Data))


class TicketTimes(ctypes.Structure):
    """krb5_ticket_times. MIT reads the numbers as unsigned, which lasts until 2106."""

    _fields_ = (("authtime", c_uint32), ("starttime", c_uint32), ("endtime", c_uint32), ("renew_till", c_uint32))


class EncTktPart(ctypes.Structure):
    """krb5_enc_tkt_part."""

    _fields_ = (
        ("magic", c_int32),
        ("flags", c_int32),
        ("session", c_void_p),
        ("client", c_void_p),
        ("transited", Transited),
        ("times", TicketTimes),
        ("caddrs", c_void_p),
        ("authorization_data", c_void_p),
    )


class Ticket(ctypes.Structure):
    """krb5_ticket."""

    _fields_ = (
        ("magic", c_int32),
        ("server", c_void_p),
        ("enc_part", EncData),
        ("enc_part2", POINTER(EncTktPart)),
    )


class Error(ctypes.Structure):
    """krb5_error: the contents of a KRB-ERROR."""

    _fields_ = (
        ("magic", c_int32),
        ("ctime", c_int32),
        ("cusec", c_int32),
        ("susec", c_int32),
        ("stime", c_int32),
        ("error", c_uint32),
        ("client", c_void_p),
        ("server", c_void_p),
        ("text", Data),
        ("e_data", Data),
    )


class Checksum(ctypes.Structure):
    """krb5_checksum."""

    _fields_ = (("magic", c_int32), ("checksum_type", c_int32), ("length", c_uint), ("contents", c_void_p))


class AuthenticatorHead(ctypes.Structure):
    """The beginning of krb5_authenticator."""

    _fields_ = (("magic", c_int32), ("client", c_void_p), ("checksum", POINTER(Checksum)))


class CredsHead(ctypes.Structure):
    """The beginning of krb5_creds."""

    _fields_ = (("magic", c_int32), ("client", c_void_p), ("server", c_void_p))


_PP: Final = POINTER(c_void_p)
_CHECKED: Final[dict[str, tuple[Any, ...]]] = {
    "krb5_init_context": (_PP,),
    "krb5_kt_resolve": (c_void_p, c_char_p, _PP),
    "krb5_cc_resolve": (c_void_p, c_char_p, _PP),
    "krb5_cc_default": (c_void_p, _PP),
    "krb5_cc_close": (c_void_p, c_void_p),
    "krb5_cc_destroy": (c_void_p, c_void_p),
    "krb5_parse_name": (c_void_p, c_char_p, _PP),
    "krb5_sname_to_principal": (c_void_p, c_char_p, c_char_p, c_int32, _PP),
    "krb5_unparse_name": (c_void_p, c_void_p, _PP),
    "krb5_auth_con_init": (c_void_p, _PP),
    "krb5_auth_con_setrcache": (c_void_p, c_void_p, c_void_p),
    "k5_rc_resolve": (c_void_p, c_char_p, _PP),
    "krb5_rd_req": (c_void_p, _PP, POINTER(Data), c_void_p, c_void_p, POINTER(c_int32), POINTER(POINTER(Ticket))),
    "krb5_auth_con_getauthenticator": (c_void_p, c_void_p, POINTER(POINTER(AuthenticatorHead))),
    "krb5_mk_rep": (c_void_p, c_void_p, POINTER(Data)),
    "krb5_mk_req": (
        c_void_p,
        _PP,
        c_int32,
        c_char_p,
        c_char_p,
        c_void_p,
        c_void_p,
        POINTER(Data),
    ),
    "krb5_rd_rep": (c_void_p, c_void_p, POINTER(Data), _PP),
    "krb5_mk_error": (c_void_p, POINTER(Error), POINTER(Data)),
    "krb5_us_timeofday": (c_void_p, POINTER(c_int32), POINTER(c_int32)),
    "krb5_enctype_to_name": (c_int32, c_uint, POINTER(c_char), c_size_t),
    "krb5_get_init_creds_opt_alloc": (c_void_p, _PP),
    "krb5_get_init_creds_password": (
        c_void_p,
        c_void_p,
        c_void_p,
        c_char_p,
        c_void_p,
        c_void_p,
        c_int32,
        c_char_p,
        c_void_p,
    ),
    "krb5_get_init_creds_keytab": (c_void_p, c_void_p, c_void_p, c_void_p, c_int32, c_char_p, c_void_p),
    "krb5_get_time_offsets": (c_void_p, POINTER(c_int32), POINTER(c_int32)),
    "krb5_decode_ticket": (POINTER(Data), POINTER(POINTER(Ticket))),
    "krb5_verify_init_creds": (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
}
"""Prototypes of functions that return a krb5_error_code."""
_VOID: Final[dict[str, tuple[Any, ...]]] = {
    "krb5_free_context": (c_void_p,),
    "krb5_free_principal": (c_void_p, c_void_p),
    "krb5_free_unparsed_name": (c_void_p, c_void_p),
    "krb5_free_ticket": (c_void_p, POINTER(Ticket)),
    "krb5_free_data_contents": (c_void_p, POINTER(Data)),
    "krb5_auth_con_free": (c_void_p, c_void_p),
    "krb5_free_authenticator": (c_void_p, POINTER(AuthenticatorHead)),
    "krb5_free_ap_rep_enc_part": (c_void_p, c_void_p),
    "krb5_kt_close": (c_void_p, c_void_p),
    "krb5_free_cred_contents": (c_void_p, c_void_p),
    "krb5_get_init_creds_opt_free": (c_void_p, c_void_p),
    "krb5_get_init_creds_opt_set_tkt_life": (c_void_p, c_int32),
    "krb5_get_init_creds_opt_set_forwardable": (c_void_p, c_int),
    "krb5_get_init_creds_opt_set_proxiable": (c_void_p, c_int),
    "krb5_get_init_creds_opt_set_change_password_prompt": (c_void_p, c_int),
    "krb5_verify_init_creds_opt_init": (c_void_p,),
    "krb5_verify_init_creds_opt_set_ap_req_nofail": (c_void_p, c_int),
}


@functools.cache
def library() -> ctypes.CDLL:
    """libkrb5 with its prototypes. Raises Unavailable if it is missing, older than 1.18, or not MIT's."""
    try:
        krb5 = ctypes.CDLL(_SONAME)
        for table, result in ((_CHECKED, c_int32), (_VOID, None)):
            for name, arguments in table.items():
                function = getattr(krb5, name)
                function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as error:
        what = f"{_SONAME} of MIT Kerberos 1.18 or newer was not found; install it (Debian: libkrb5-3): {error}"
        raise Unavailable(what, "no_library") from None
    return krb5


class Context:
    """A krb5_context with the operations of this package. For one thread only: see `this_thread`."""

    def __init__(self) -> None:
        """Reads krb5.conf. Raises Krb5Failure, Unavailable."""
        self._library = library()
        self.handle = c_void_p()
        self._any_host: dict[str, c_void_p] = {}
        self.call("krb5_init_context", byref(self.handle))

    def __del__(self) -> None:
        if self.handle.value is not None:
            for principal in self._any_host.values():
                self.free("krb5_free_principal", principal)
            self._library.krb5_free_context(self.handle)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function that returns a krb5_error_code. Raises Krb5Failure with a code other than 0."""
        code: int = getattr(self._library, function)(*arguments)
        if code:
            raise Krb5Failure(function, code)

    def free(self, function: str, *arguments: Any) -> None:
        """Call a function that returns nothing, with the context in front of the arguments."""
        getattr(self._library, function)(self.handle, *arguments)

    def option(self, function: str, *arguments: Any) -> None:
        """Call a function that returns nothing and takes no context."""
        getattr(self._library, function)(*arguments)

    @contextmanager
    def principal(self, name: str) -> Iterator[c_void_p]:
        """A krb5_principal, in the default realm unless the name has one."""
        principal = c_void_p()
        self.call("krb5_parse_name", self.handle, name.encode(), byref(principal))
        try:
            yield principal
        finally:
            self.free("krb5_free_principal", principal)

    def any_host(self, service: str) -> c_void_p:
        """The principal ``service/`` without a host or realm, which stands for all of them; the context keeps it."""
        principal = self._any_host.get(service)
        if principal is None:
            principal = c_void_p()
            name = service.encode()
            self.call("krb5_sname_to_principal", self.handle, b"", name, _NT_SRV_HST, byref(principal))
            self._any_host[service] = principal
        return principal

    @contextmanager
    def keytab(self, name: str) -> Iterator[c_void_p]:
        """A krb5_keytab; the file is opened by the functions that look into it."""
        keytab = c_void_p()
        self.call("krb5_kt_resolve", self.handle, name.encode(), byref(keytab))
        try:
            yield keytab
        finally:
            self.call("krb5_kt_close", self.handle, keytab)

    def text(self, principal: c_void_p | int | None) -> str:
        """A principal with realm, unusual characters behind a backslash. Raises UnicodeDecodeError."""
        name = c_void_p()
        self.call("krb5_unparse_name", self.handle, principal, byref(name))
        try:
            return ctypes.string_at(name.value or 0).decode()
        finally:
            self.free("krb5_free_unparsed_name", name)

    def take(self, data: Data) -> bytes:
        """The octets of a krb5_data that the library has filled; frees it."""
        octets = ctypes.string_at(data.data, data.length)
        self.free("krb5_free_data_contents", byref(data))
        return octets


_contexts = threading.local()


def this_thread() -> Context:
    """The context of the running thread: made at its first call, freed when it ends."""
    context: Context | None = getattr(_contexts, "context", None)
    if context is None:
        context = _contexts.context = Context()
    return context


def enctype_name(enctype: int) -> str:
    """As krb5.conf has it: ``aes256-cts-hmac-sha1-96``; the number if the library does not know it."""
    buffer = ctypes.create_string_buffer(100)
    if library().krb5_enctype_to_name(enctype, 0, buffer, len(buffer)):
        return str(enctype)
    return buffer.value.decode("ascii", "replace")
