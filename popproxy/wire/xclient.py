"""XCLIENT as Dovecot's POP3 server and its login proxy have it: a trusted proxy says for whom it has come.

    XCLIENT ADDR=192.0.2.1 PORT=40000 SESSION=dc92af40c059a068 TTL=5

From Dovecot 2.3 (``pop3-proxy.c``, ``pop3-login/client.c``): the server greets those whom it trusts with ``[XCLIENT]``
and takes the command before the login, from `login_trusted_networks` alone. To others it answers +OK all the same, and
forgets it; here they get -ERR.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from popproxy.errors import RemoteProtocolError
from popproxy.types import Address
from popproxy.wire.visitor import HOPS, Visitor

GREETING = "[XCLIENT]"
"""How the text of a greeting begins where XCLIENT is taken."""
_ATTRIBUTE = re.compile(rb"([A-Za-z][A-Za-z0-9-]{0,31})=([!-~]*)")
_SESSION = re.compile(r"[A-Za-z0-9+/=._:-]{1,128}")
_NUMBER = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Introduction:
    """For whom a front has come. `session`: its own name for the session, "" if it has none.

    `hops`: how many proxies may still hand the session on, the one that we tell included.
    """

    source: Address
    session: str
    hops: int


def xclient(visitor: Visitor) -> bytes:
    """The command, with its line end."""
    source = visitor.source
    host = source.host.partition("%")[0]  # the zone of a link-local address means nothing elsewhere
    return f"XCLIENT ADDR={host} PORT={source.port} SESSION={visitor.session} TTL={visitor.hops}\r\n".encode("ascii")


def parse_xclient(arguments: bytes) -> Introduction:
    """What stands behind ``XCLIENT``. Raises RemoteProtocolError (reason ``xclient``), whose text may be shown.

    ADDR and PORT must be there. FORWARD, CLIENT-TRANSPORT and whatever else may come is passed over: a LOGIN, above
    all, proves nothing. A TTL that is used up is refused, as Dovecot does where it would hand a session on.
    """
    found: dict[str, str] = {}
    for word in arguments.strip(b" ").split(b" "):
        match = _ATTRIBUTE.fullmatch(word)
        if match is None:
            raise _bad("malformed XCLIENT")
        name = match[1].decode("ascii").upper()
        if name in found:
            raise _bad(f"{_known(name)} twice in XCLIENT")
        found[name] = match[2].decode("ascii")
    session = found.get("SESSION", "")
    if "SESSION" in found and not _SESSION.fullmatch(session):
        raise _bad("malformed SESSION in XCLIENT")
    if found.get("PROTO", "POP3").upper() != "POP3":
        raise _bad("another protocol in XCLIENT")
    hops = _number(found, "TTL", 255) - 1 if "TTL" in found else HOPS
    if hops < 1:
        raise _bad("TTL used up: these proxies hand sessions round in a circle")
    port = _number(found, "PORT", 0xFFFF)
    if port == 0:
        raise _bad("malformed PORT in XCLIENT")
    return Introduction(Address(_host(found.get("ADDR", "")), port), session, hops)


def _host(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise _bad("malformed ADDR in XCLIENT") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise _bad("malformed ADDR in XCLIENT")
        address = address.ipv4_mapped or address
    if address.is_unspecified or address.is_multicast:
        raise _bad("an ADDR in XCLIENT that is no client's")
    return str(address)


def _number(found: dict[str, str], name: str, greatest: int) -> int:
    text = found.get(name, "")
    if not _NUMBER.fullmatch(text) or int(text) > greatest:
        raise _bad(f"malformed {name} in XCLIENT")
    return int(text)


def _known(name: str) -> str:
    return name if name in ("ADDR", "PORT", "SESSION", "TTL", "PROTO") else "an attribute"


def _bad(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, reason="xclient")
