"""XCLIENT as Dovecot's POP3 server has it: a trusted proxy says for whom it has come.

    XCLIENT ADDR=192.0.2.1 PORT=40000 SESSION=dc92af40c059a068 TTL=5

From Dovecot 2.3 (``pop3-proxy.c``): the server takes it before the login, from `login_trusted_networks` alone. From
others it answers +OK all the same, and forgets it.
"""

from __future__ import annotations

from popproxy.wire.visitor import Visitor


def xclient(visitor: Visitor) -> bytes:
    """The command, with its line end."""
    source = visitor.source
    host = source.host.partition("%")[0]  # the zone of a link-local address means nothing elsewhere
    return f"XCLIENT ADDR={host} PORT={source.port} SESSION={visitor.session} TTL={visitor.hops}\r\n".encode("ascii")
