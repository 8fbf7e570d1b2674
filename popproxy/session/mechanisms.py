"""The SASL mechanisms that a listener offers beside PLAIN, LOGIN and GSSAPI, as far as a connection allows them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from functools import partial

from popproxy.net.channel import Channel
from popproxy.net.tls import ServerTls
from popproxy.sasl import apop
from popproxy.sasl.cram_md5 import CramMd5
from popproxy.sasl.external import External
from popproxy.sasl.mechanism import SaslMechanism
from popproxy.sasl.oauth import OAuthBearer, OAuthRefusals, XOAuth2
from popproxy.sasl.scram import ScramExchange
from popproxy.types import Mechanism

Factories = Mapping[str, Callable[[], SaslMechanism]]

_END_POINT = "tls-server-end-point"
_BEARER: Mapping[str, Callable[[OAuthRefusals], SaslMechanism]] = {
    Mechanism.OAUTHBEARER: OAuthBearer,
    Mechanism.XOAUTH2: XOAuth2,
}


class Mechanisms:
    """Those of one listener. `host` stands in the challenges of CRAM-MD5; `refusals` are for bearer tokens."""

    def __init__(self, names: list[Mechanism], host: str, refusals: OAuthRefusals | None = None) -> None:
        self._names = names
        self._host = host
        self._refusals = refusals

    def offer(self, channel: Channel, tls: ServerTls | None, gone: Collection[str] = ()) -> Factories:
        """What can be used on a connection as it is now, in the order of the configuration, without what is `gone`."""
        names = [name for name in self._names if name not in gone]
        end_point = None if tls is None else tls.end_point(channel.tls_context)
        plus = end_point is not None and any(name.endswith("-PLUS") for name in names)
        found: dict[str, Callable[[], SaslMechanism]] = {}
        for name in names:
            if name is Mechanism.CRAM_MD5:
                found[name] = self._cram_md5
            elif name is Mechanism.EXTERNAL:
                certificate = channel.peer_certificate
                if certificate is not None:
                    found[name] = partial(External, certificate)
            elif name in _BEARER:
                if channel.encrypted and self._refusals is not None:  # RFC 7628 section 4: the token goes in clear
                    found[name] = partial(_BEARER[name], self._refusals)
            elif not name.endswith("-PLUS"):
                found[name] = partial(_scram, name, None, plus_offered=plus)
            elif end_point is not None:
                found[name] = partial(_scram, name, end_point)
        return found

    def _cram_md5(self) -> CramMd5:
        return CramMd5(apop.make_timestamp(secrets.token_hex(16), self._host))


def _scram(name: Mechanism, end_point: bytes | None, *, plus_offered: bool = False) -> ScramExchange:
    """A new exchange, with 144 random bits of ours."""
    bindings = None if end_point is None else {_END_POINT: end_point.removeprefix(_END_POINT.encode() + b":")}
    return ScramExchange(name, secrets.token_urlsafe(18), bindings, plus_offered=plus_offered)
