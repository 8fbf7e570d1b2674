"""Is there an LDAP server, and does its TLS work? Asked without libldap, which cannot be told when to give up."""

from __future__ import annotations

import socket
import ssl
from typing import Final

STARTTLS: Final = bytes.fromhex("301d02010177188016") + b"1.3.6.1.4.1.1466.20037"
"""An ExtendedRequest for StartTLS (RFC 4511 section 4.14.1). Every server has an answer to it."""
_SUCCESS: Final = b"\x0a\x01\x00"  # resultCode in the ExtendedResponse


class NoStartTls(OSError):
    """The server is there, but does not want TLS."""


def greet(host: str, port: int, tls: str, context: ssl.SSLContext, seconds: float) -> str:
    """Connect, have one answer, shake hands if `tls` is starttls or implicit. Returns the TLS version, "" without TLS.

    `seconds` are for each step. Raises OSError, and what is made of it: ssl.SSLError, TimeoutError, NoStartTls.
    """
    with socket.create_connection((host, port), timeout=seconds) as sock:
        if tls != "implicit":
            sock.sendall(STARTTLS)
            answer = sock.recv(4096)
            if not answer:
                raise ConnectionResetError("closed the connection")
            if tls == "none":
                return ""
            if _SUCCESS not in answer[:24]:
                raise NoStartTls("refuses StartTLS")
        with context.wrap_socket(sock, server_hostname=host) as secured:
            return secured.version() or ""
