"""The security layers of SASL GSSAPI (RFC 4752 section 3.3): integrity, or integrity and confidentiality.

Once the layer has started, every octet in both directions is part of a token of the GSS context, behind its length in
four octets (RFC 4422 section 3.7). The layer is as strict as TLS: what it cannot verify ends the connection.
"""

from __future__ import annotations

import errno

from popproxy.errors import LocalProtocolError, PopproxyError, RemoteProtocolError
from popproxy.net.layer import Carrier
from popproxy.sasl.gssapi import GssSecurity

_PREFIX = 4


class GssLayer:
    """Both directions of one connection. `conf`: encrypted, and nothing unencrypted is taken.

    `peer_max` and `our_max` are the longest tokens that either side has said it takes, in octets without the length.
    """

    __slots__ = ("_buffer", "_context", "_our_max", "_plaintext_limit", "conf")

    def __init__(self, context: GssSecurity, peer_max: int, our_max: int, conf: bool) -> None:
        self.conf = conf
        self._context = context
        self._our_max = our_max
        self._plaintext_limit = context.wrap_size_limit(peer_max, confidential=conf)
        self._buffer = bytearray()  # an incomplete token with its length
        if self._plaintext_limit < 1:
            raise LocalProtocolError("the peer takes no token that is long enough for one octet")

    @property
    def buffered(self) -> int:
        """Octets of an incomplete token, with its length: never more than `our_max` + 4."""
        return len(self._buffer)

    def decode(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take octets from the peer; returns the plaintexts of the tokens that are complete, none of them empty.

        Raises RemoteProtocolError (reason ``gss_layer``) for a length that was not offered, as soon as it is known, and
        for a token that is forged, replayed, out of order or not encrypted where it must be. The layer is of no use
        then, and what came together with such a token is not handed on.
        """
        self._buffer += data
        plaintexts = []
        start = 0
        with memoryview(self._buffer) as view:
            while len(view) - start >= _PREFIX:
                length = int.from_bytes(view[start : start + _PREFIX], "big")
                if not 0 < length <= self._our_max:
                    raise _bad("the length of a token is not what was agreed")
                end = start + _PREFIX + length
                if end > len(view):
                    break
                plaintext = self._unwrap(bytes(view[start + _PREFIX : end]))
                if plaintext:
                    plaintexts.append(plaintext)
                start = end
        del self._buffer[:start]
        return plaintexts

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """The tokens for the peer that carry `data`, each with its length.

        Raises RemoteProtocolError (reason ``gss_layer``) if the context is of no more use, as when it has expired.
        """
        pieces: list[bytes] = []
        with memoryview(data) as view:
            for start in range(0, len(view), self._plaintext_limit):
                token = self._wrap(bytes(view[start : start + self._plaintext_limit]))
                pieces += (len(token).to_bytes(_PREFIX, "big"), token)
        return b"".join(pieces)

    def _wrap(self, data: bytes) -> bytes:
        try:
            return self._context.wrap(data, confidential=self.conf)
        except PopproxyError:
            raise _bad("the GSS context is not usable any more") from None

    def _unwrap(self, token: bytes) -> bytes:
        try:
            plaintext, encrypted = self._context.unwrap(token)
        except PopproxyError:
            raise _bad("a token cannot be verified") from None
        if self.conf and not encrypted:
            raise _bad("a token is not encrypted")
        return plaintext

    # ---- Layer ----

    @property
    def encrypted(self) -> bool:
        """See Layer."""
        return self.conf

    @property
    def handshaking(self) -> bool:
        """See Layer: the context is complete when the layer starts."""
        return False

    def received(self, carrier: Carrier, data: memoryview) -> None:
        """See Layer."""
        if not len(data):
            carrier.received_eof()
            return
        try:
            plaintexts = self.decode(data)
        except RemoteProtocolError as error:
            carrier.lose(OSError(errno.ECONNRESET, "GSS"), error.reason)
            return
        if plaintexts:
            plain = bytearray().join(plaintexts)
            carrier.receiver.data_received(plain, len(plain))

    def farewell(self) -> bytes:
        """See Layer: there is nothing to say."""
        return b""

    def ended(self, reason: str) -> None:
        """See Layer."""


def _bad(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, reason="gss_layer")
