"""A SCRAM client made by hand, so that it can do everything wrong."""

from __future__ import annotations

import base64
import hashlib
import hmac

from popproxy.types import Mechanism


class HandMadeClient:
    """One exchange. `header` is the GS2 header; `user` as it is sent."""

    def __init__(
        self, mechanism: Mechanism = Mechanism.SCRAM_SHA_256, header: bytes = b"n,,", user: bytes = b"user"
    ) -> None:
        self.mechanism = mechanism
        self.header = header
        self.bare = b"n=" + user + b",r=clientnonce"

    @property
    def first(self) -> bytes:
        """The first message."""
        return self.header + self.bare

    def final(self, server_first: bytes, password: bytes = b"pencil", data: bytes = b"", **changes: bytes) -> bytes:
        """The last message, bound to `data`; `changes` are channel, nonce, extra and proof."""
        hash_name = "sha1" if "SHA-1" in self.mechanism else "sha256"
        fields = dict(part.split(b"=", 1) for part in server_first.split(b","))
        salted = hashlib.pbkdf2_hmac(hash_name, password, base64.b64decode(fields[b"s"]), int(fields[b"i"]))
        key = hmac.digest(salted, b"Client Key", hash_name)
        channel = changes.get("channel", base64.b64encode(self.header + data))
        without_proof = b"c=" + channel + b",r=" + changes.get("nonce", fields[b"r"]) + changes.get("extra", b"")
        signature = hmac.digest(
            hashlib.new(hash_name, key).digest(), b",".join((self.bare, server_first, without_proof)), hash_name
        )
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        return without_proof + b",p=" + changes.get("proof", base64.b64encode(proof))
