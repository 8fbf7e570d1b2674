"""The part of PAM that runs in helper processes: the only home of libpam.

PAM's modules block, read /etc/shadow as root, start programs, and wait seconds after a wrong password. A worker does
all that for itself alone; it is killed when it is late. The waiting after a wrong password is left out: popproxy has
its own, which is the same for everybody.

Questions are ``{user, password, host}``, the password in base64, host the client's address. Answers have a `result`:
accepted, unknown, refused (with reason) or unavailable (with why).
"""

from __future__ import annotations

import base64
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

DIRECTORIES: Final = ("/etc/pam.d", "/usr/lib/pam.d")
"""Where a service is described. Without a description PAM would take that of the service `other`."""

# Linux-PAM's security/_pam_types.h
_SUCCESS, _CONV_ERR, _BUF_ERR = 0, 19, 5
_TTY, _RHOST, _FAIL_DELAY = 3, 4, 10
_PROMPT_ECHO_OFF, _PROMPT_ECHO_ON = 1, 2
_SILENT, _DISALLOW_NULL_AUTHTOK = 0x8000, 0x0001
_MAX_MESSAGES: Final = 32

_AUTHENTICATION: Final = {
    7: "bad_credentials", 11: "account_locked", 6: "account_restricted", 13: "account_expired",
    12: "password_expired", 16: "password_expired", 27: "password_expired",
}  # fmt: skip
"""What a refusal by the modules of auth means; PAM_USER_UNKNOWN (10) is none."""
_ACCOUNT: Final = {
    13: "account_expired", 12: "password_expired", 27: "password_expired", 16: "password_expired",
    6: "account_restricted", 7: "account_restricted", 10: "account_restricted",
}  # fmt: skip
"""The same of account, which are only asked once the password has proved to be right."""

Answer = dict[str, Any]


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", ctypes.c_void_p), ("code", ctypes.c_int))


_Converse = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.POINTER(_Message)), ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)  # fmt: skip
_Delay = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


class _Conversation(ctypes.Structure):
    _fields_ = (("converse", _Converse), ("data", ctypes.c_void_p))


def described(service: str) -> bool:
    """Is there a description of this service?"""
    return any((Path(directory) / service).is_file() for directory in DIRECTORIES)


def prepare(settings: dict[str, Any]) -> Callable[[Answer, float], Answer]:
    """The worker's function. Raises OSError if there is no libpam, or no description of the service."""
    service: str = settings["service"]
    if not described(service):
        raise OSError(f"there is no {DIRECTORIES[0]}/{service}")
    pam, libc = _libraries()

    def answer(question: Answer, _seconds: float) -> Answer:
        password = base64.b64decode(question["password"])
        return _Login(pam, libc, service, question["user"].encode(), password).judge(question["host"].encode())

    return answer


def _libraries() -> tuple[Any, Any]:
    pam, libc = ctypes.CDLL("libpam.so.0"), ctypes.CDLL(None)
    pointer = ctypes.c_void_p
    pam.pam_start.argtypes = (
        ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Conversation), ctypes.POINTER(pointer),
    )  # fmt: skip
    pam.pam_set_item.argtypes = (pointer, ctypes.c_int, pointer)
    for call in (pam.pam_authenticate, pam.pam_acct_mgmt, pam.pam_end):
        call.argtypes = (pointer, ctypes.c_int)
    pam.pam_strerror.argtypes = (pointer, ctypes.c_int)
    pam.pam_strerror.restype = ctypes.c_char_p
    libc.calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    libc.calloc.restype = pointer
    libc.strdup.argtypes = (ctypes.c_char_p,)
    libc.strdup.restype = pointer
    libc.free.argtypes = (pointer,)
    return pam, libc


class _Login:
    """One conversation. A password is given once: a second question is for a code that nobody can give here."""

    def __init__(self, pam: Any, libc: Any, service: str, user: bytes, password: bytes) -> None:
        self._pam = pam
        self._libc = libc
        self._service = service.encode()
        self._user = user
        self._password: bytes | None = password
        self._handle = ctypes.c_void_p()
        self._conversation = _Conversation(_Converse(self._converse), None)
        self._delay = _Delay(lambda _status, _microseconds, _data: None)

    def judge(self, host: bytes) -> Answer:
        """Password first, then the account."""
        pam, handle = self._pam, self._handle
        status = pam.pam_start(self._service, self._user, ctypes.byref(self._conversation), ctypes.byref(handle))
        if status != _SUCCESS:
            return {"result": "unavailable", "why": f"PAM does not start ({status})"}
        try:
            items: list[tuple[int, Any]] = [
                (_TTY, b"popproxy"),
                (_FAIL_DELAY, ctypes.cast(self._delay, ctypes.c_void_p)),
            ]
            if host:
                items.append((_RHOST, host))
            for item, value in items:
                status = pam.pam_set_item(handle, item, value)
                if status != _SUCCESS:
                    return self._unavailable("pam_set_item", status)
            flags = _SILENT | _DISALLOW_NULL_AUTHTOK
            status = pam.pam_authenticate(handle, flags)
            if status == 10:
                return {"result": "unknown"}
            if status != _SUCCESS:
                return self._refused("auth", status, _AUTHENTICATION)
            status = pam.pam_acct_mgmt(handle, flags)
            return {"result": "accepted"} if status == _SUCCESS else self._refused("account", status, _ACCOUNT)
        finally:
            pam.pam_end(handle, status)

    def _refused(self, phase: str, status: int, reasons: dict[int, str]) -> Answer:
        reason = reasons.get(status)
        return self._unavailable(phase, status) if reason is None else {"result": "refused", "reason": reason}

    def _unavailable(self, phase: str, status: int) -> Answer:
        text = self._pam.pam_strerror(self._handle, status).decode(errors="replace")
        return {"result": "unavailable", "why": f"{phase} fails: {text} ({status})"}

    def _converse(self, count: int, messages: Any, responses: Any, _data: object) -> int:
        """Called by modules. What they get must come from malloc: they free it."""
        if not 0 < count <= _MAX_MESSAGES:
            return _CONV_ERR
        answers: list[bytes | None] = []
        for number in range(count):
            style = messages[number].contents.style
            if style == _PROMPT_ECHO_OFF:
                if self._password is None:
                    return _CONV_ERR
                answers.append(self._password)
                self._password = None
            else:
                answers.append(self._user if style == _PROMPT_ECHO_ON else None)
        array = self._libc.calloc(count, ctypes.sizeof(_Response))
        if not array:
            return _BUF_ERR
        filled = ctypes.cast(array, ctypes.POINTER(_Response))
        for number, answer in enumerate(answers):
            filled[number].text = None if answer is None else self._libc.strdup(answer)
        responses[0] = array
        return _SUCCESS
