"""SCRAM (RFC 5802, RFC 7677), the server's side, with and without channel binding (-PLUS).

The client proves that it knows the password without sending it, the server that it knows the verifier. What is stored
for a user may take time to find: `NeedVerifier` asks for it, and `verifier_found` goes on from there. A user who has
none gets a made-up verifier from there, and fails at the proof like a wrong password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from popproxy.errors import LocalProtocolError
from popproxy.sasl.credentials import ScramCredential
from popproxy.sasl.gs2 import Gs2Header, decode_saslname, parse_header
from popproxy.sasl.mechanism import Challenge, NeedVerifier, SaslError, Step, Verify
from popproxy.sasl.saslprep import NotPreparable, saslprep
from popproxy.sasl.scram_verifier import ScramVerifier, hash_name, scheme_of
from popproxy.types import AuthFailure, Mechanism

MAX_MESSAGE: Final = 8 * 1024
"""Octets of a message. Names and nonces are shorter by far; extensions may follow them."""
MAX_NONCE: Final = 512
"""Octets of the client's nonce."""

_EXTENSIONS = rb"(?:,[A-Za-z]=[^,\0]+)*"
_CLIENT_FIRST = re.compile(rb"n=(?P<name>[^,\0]+),r=(?P<nonce>[!-+\--~]+)" + _EXTENSIONS)
_CLIENT_FINAL = re.compile(
    rb"(?P<signed>c=(?P<channel>[A-Za-z0-9+/=]*),r=(?P<nonce>[!-+\--~]+)" + _EXTENSIONS + rb"),p=(?P<proof>[^,]*)"
)


class _Awaits(Enum):
    CLIENT_FIRST = auto()
    VERIFIER = auto()
    CLIENT_FINAL = auto()
    EMPTY = auto()  # the client's empty line behind our signature
    NOTHING = auto()


class ScramExchange:
    """One SCRAM exchange, from AUTH to the credential. After an exception it is of no further use.

    `nonce` is ours: printable ASCII without comma, fresh, at least 128 random bits. `bindings` are the channel bindings
    of this connection by name (RFC 5929), for a -PLUS mechanism. `plus_offered` says, to a mechanism without it, that
    the client could have bound the channel: one that could and believes we cannot has been lied to.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        nonce: str,
        bindings: Mapping[str, bytes] | None = None,
        *,
        plus_offered: bool = False,
    ) -> None:
        self._mechanism = mechanism
        self._hash = hash_name(scheme_of(mechanism))
        self._nonce = nonce.encode("ascii")  # the client's and ours, once the client has sent its own
        self._plus = mechanism.endswith("-PLUS")
        self._bindings = bindings or {}
        self._plus_offered = plus_offered
        self._awaits = _Awaits.CLIENT_FIRST
        self._authcid = self._authzid = ""
        self._channel = b""  # what c= in the client's last message must be, decoded
        self._said = b""  # both first messages, for the signatures
        self._verifier: ScramVerifier | None = None

    def step(self, response: bytes | None) -> Step:
        """Take the client's response, decoded: None at the start if it sent none. Raises SaslError."""
        awaited, self._awaits = self._awaits, _Awaits.NOTHING
        if len(response or b"") > MAX_MESSAGE:
            raise SaslError("SCRAM message too long", b"e=other-error")
        match awaited:
            case _Awaits.CLIENT_FIRST if response is None:
                self._awaits = _Awaits.CLIENT_FIRST
                return Challenge(b"")
            case _Awaits.CLIENT_FIRST:
                return self._client_first(response or b"")
            case _Awaits.CLIENT_FINAL:
                return self._client_final(response or b"")
            case _Awaits.EMPTY:
                return self._over(AuthFailure.MALFORMED if response else AuthFailure.NONE)
            case _:
                raise LocalProtocolError(f"no response is expected while waiting for {awaited.name}")

    def verifier_found(self, verifier: ScramVerifier) -> Step:
        """What `NeedVerifier` asked for, genuine or made up."""
        if self._awaits is not _Awaits.VERIFIER:
            raise LocalProtocolError("no verifier was asked for")
        self._verifier = verifier
        salt = base64.b64encode(verifier.salt)
        server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, verifier.iterations)
        self._said += b"," + server_first
        self._awaits = _Awaits.CLIENT_FINAL
        return Challenge(server_first)

    def _client_first(self, message: bytes) -> Step:
        header = parse_header(message)
        if header is None:
            raise SaslError("malformed SCRAM message", b"e=other-error")
        bare = message[len(header.octets) :]
        if bare.startswith(b"m="):
            raise SaslError("SCRAM extensions are not supported", b"e=extensions-not-supported")
        match = _CLIENT_FIRST.fullmatch(bare)
        if match is None or len(match["nonce"]) > MAX_NONCE:
            raise SaslError("malformed SCRAM message", b"e=other-error")
        self._authzid = header.authzid
        self._authcid = _prepared(decode_saslname(match["name"]))
        refused = self._bind(header)
        if refused is not None:
            return refused
        self._nonce = match["nonce"] + self._nonce
        self._said = bare
        self._awaits = _Awaits.VERIFIER
        return NeedVerifier(self._mechanism, self._authcid)

    def _bind(self, header: Gs2Header) -> Verify | None:
        """Sets what the client must confirm in its last message; a credential that is refused if it was lied to."""
        if header.flag != "p" and self._plus:
            raise SaslError("-PLUS needs a channel binding", b"e=other-error")
        if header.flag == "p" and not self._plus:
            raise SaslError("a channel binding belongs to -PLUS", b"e=channel-binding-not-supported")
        if header.flag == "y" and self._plus_offered:
            # RFC 5802 section 6: somebody has taken -PLUS out of our list on its way to the client
            return self._over(AuthFailure.CHANNEL_BINDING, b"e=server-does-support-channel-binding")
        self._channel = header.octets
        if header.flag == "p":
            data = self._bindings.get(header.binding)
            if data is None:
                known = ", ".join(self._bindings)
                raise SaslError(f"channel bindings here are {known}", b"e=unsupported-channel-binding-type")
            self._channel += data
        return None

    def _client_final(self, message: bytes) -> Step:
        match = _CLIENT_FINAL.fullmatch(message)
        verifier = self._verifier
        assert verifier is not None
        if match is None:
            raise SaslError("malformed SCRAM message", b"e=other-error")
        channel, proof = _decode(match["channel"]), _decode(match["proof"])
        if not hmac.compare_digest(match["nonce"], self._nonce):
            raise SaslError("the nonce is not the one of this exchange", b"e=other-error")
        if not hmac.compare_digest(channel, self._channel):
            return self._over(AuthFailure.CHANNEL_BINDING, b"e=channel-bindings-dont-match")
        said = self._said + b"," + match["signed"]
        signature = hmac.digest(verifier.stored_key.reveal(), said, self._hash)
        if len(proof) != len(signature):
            raise SaslError("malformed SCRAM proof", b"e=invalid-proof")
        client_key = bytes(one ^ other for one, other in zip(proof, signature, strict=True))
        known = hmac.compare_digest(hashlib.new(self._hash, client_key).digest(), verifier.stored_key.reveal())
        if not (known and verifier.genuine):
            return self._over(AuthFailure.BAD_CREDENTIALS)
        self._awaits = _Awaits.EMPTY
        return Challenge(b"v=" + base64.b64encode(hmac.digest(verifier.server_key.reveal(), said, self._hash)))

    def _over(self, fault: AuthFailure, refusal: bytes | None = None) -> Verify:
        return Verify(ScramCredential(self._mechanism, self._authcid, self._authzid, fault), refusal)


def _prepared(name: str) -> str:
    """RFC 5802 section 5.1. An empty result is left to the vetting of names."""
    try:
        return saslprep(name)
    except NotPreparable:
        raise SaslError("the name has characters that SCRAM does not allow", b"e=invalid-username-encoding") from None


def _decode(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("this is not base64", b"e=invalid-encoding") from None
