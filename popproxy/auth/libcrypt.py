"""crypt(3) of the system, for the password hashes that old systems have in their files.

libxcrypt is called through ctypes because ctypes releases the interpreter lock during the call. The package crypt_r and
the standard library's crypt (gone in Python 3.13) hold it: one ``$6$`` hash with many rounds then stops every session
of the process, thread pool or not. (Measured with a hash of 0.2 s: another thread stood still for all of it with either
of them, and for some 20 ms with ctypes.)
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable

from popproxy.errors import Unavailable

_DATA_SIZE = 32768
"""sizeof(struct crypt_data) of libxcrypt, part of its ABI."""

_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")  # .2 where the distribution dropped the obsolete functions of glibc

CryptRn = Callable[[bytes, bytes, "ctypes.Array[ctypes.c_char]", int], bytes | None]


class InvalidSetting(ValueError):
    """The library does not know this kind of hash, or its salt or cost cannot be."""


@functools.cache
def _crypt_rn() -> CryptRn:
    for library in _LIBRARIES:
        try:
            function = ctypes.CDLL(library, use_errno=True).crypt_rn
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
        function.restype = ctypes.c_char_p
        bound: CryptRn = function
        return bound
    raise Unavailable("libcrypt.so.1 with crypt_rn was not found; install libxcrypt (Debian: libcrypt1)", "no_library")


def crypt(password: bytes, setting: bytes) -> bytes | None:
    """Hash `password` with the scheme, cost and salt of `setting`, which may be a whole hash.

    None if no hash of this kind can belong to the password: it holds a NUL or is too long (512 octets). Raises
    InvalidSetting, and Unavailable if the library or memory is missing.
    """
    if b"\0" in password or b"\0" in setting:
        return None  # C would see only what stands before it
    function = _crypt_rn()
    data = ctypes.create_string_buffer(_DATA_SIZE)
    ctypes.set_errno(0)
    hashed = function(password, setting, data, _DATA_SIZE)
    if hashed is not None:
        return hashed
    number = ctypes.get_errno()
    if number == errno.ERANGE:
        return None
    if number == errno.EINVAL:
        raise InvalidSetting("crypt(3) does not accept this kind of hash")
    raise Unavailable(f"crypt(3) failed: {os.strerror(number)}", "crypt_failed")
