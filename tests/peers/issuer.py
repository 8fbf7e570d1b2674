"""An issuer of OAuth tokens: real keys behind a real HTTPS server on loopback, which can also be down, slow, or lie."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote_plus

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.peers.canaries import canary
from tests.peers.certs import Authority

Mood = Literal["good", "slow", "huge", "endless", "elsewhere", "broken", "garbage", "list", "bomb"]
"""How it answers: well; not at all; with a megabyte; for ever; by sending people on; with status 500; with no JSON;
with JSON that is no object; with JSON that is nested too deeply."""
CLIENT = "popproxy"


def _made(algorithm: str) -> Any:
    if algorithm.startswith("ES"):
        return ec.generate_private_key({"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


@dataclass(slots=True)
class Key:
    """A key of the issuer, or of somebody else."""

    kid: str = "one"
    algorithm: str = "ES256"
    private: Any = None

    def __post_init__(self) -> None:
        self.private = self.private or _made(self.algorithm)

    def public(self) -> dict[str, Any]:
        """As it stands in a key set."""
        maker = jwt.get_algorithm_by_name(self.algorithm)
        found: dict[str, Any] = maker.to_jwk(self.private.public_key(), as_dict=True)
        return {**found, "kid": self.kid, "use": "sig"}


@dataclass
class Issuer:
    """Listens on `port`; `certificate` is its TLS, `ca` what clients must trust."""

    authority: Authority
    keys: list[Key] = field(default_factory=lambda: [Key()])
    mood: Mood = "good"
    secret: str = field(default_factory=lambda: canary("oauth"))
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tokens that it knows, for introspection."""
    asked: list[str] = field(default_factory=list)
    """Paths of all requests."""
    name: str = ""

    def __post_init__(self) -> None:
        self._gone = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()
        self.name = self.url

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://localhost:{self.port}"

    def start(self) -> None:
        """Listen, at the same place as before."""
        files = self.authority.server()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        self._gone.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from here on."""
        self._gone.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def token(self, user: str = "alice", key: Key | None = None, /, **claims: Any) -> str:
        """A good token for popproxy, with `claims` added or replaced; None leaves one out."""
        now = int(time.time())
        all_claims = {
            "iss": self.name, "aud": "popproxy", "sub": "4711", "email": user, "scope": "openid pop",
            "iat": now, "exp": now + 300, **claims,
        }  # fmt: skip
        key = key or self.keys[0]
        kept = {name: value for name, value in all_claims.items() if value is not None}
        return jwt.encode(kept, key.private, key.algorithm, headers={"kid": key.kid})

    def section(self, **more: Any) -> dict[str, Any]:
        """Its entry in the configuration."""
        return {"issuer": self.name, "audience": ["popproxy"], "ca": str(self.authority.ca), **more}

    def introspecting(self, directory: Path, **more: Any) -> dict[str, Any]:
        """The same, asking about each token."""
        secret = directory / "oauth.secret"
        secret.write_text(self.secret)
        secret.chmod(0o600)
        asked = {"url": f"{self.url}/introspect", "client_id": CLIENT, "client_secret": {"file": str(secret)}, **more}
        return self.section(introspection=asked)

    def wait(self) -> None:
        """Say nothing until the end."""
        self._gone.wait(60)

    def document(self, path: str, form: dict[str, list[str]]) -> Any:
        """What a good issuer answers."""
        match path:
            case "/.well-known/openid-configuration":
                return {"issuer": self.name, "jwks_uri": f"{self.url}/keys"}
            case "/keys":
                return {"keys": [key.public() for key in self.keys]}
            case "/introspect":
                return {"active": True, **found} if (found := self.known.get(form["token"][0])) else {"active": False}
        return None


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            user, _, password = base64.b64decode(given).decode().partition(":")
            if (unquote_plus(user), unquote_plus(password)) != (CLIENT, issuer.secret):
                self._send(401, b"{}")
                return
            self._answer(parse_qs(octets.decode()))

        def _answer(self, form: dict[str, list[str]]) -> None:
            issuer.asked.append(self.path)
            document = issuer.document(self.path, form)
            octets = json.dumps(document).encode()
            match issuer.mood:
                case "slow":
                    issuer.wait()
                case "huge":
                    self._send(200, b'{"keys": "' + b"x" * 1_000_000 + b'"}')
                case "endless":
                    self._drip()
                case "elsewhere":
                    self._send(302, b"", Location=f"{issuer.url}/keys")
                case "broken":
                    self._send(500, octets)
                case "garbage":
                    self._send(200, b"<html>login</html>")
                case "list":
                    self._send(200, b"[]")
                case "bomb":
                    self._send(200, b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
                case _:
                    self._send(404 if document is None else 200, octets)

        def _send(self, status: int, octets: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(octets)
            self.close_connection = True

        def _drip(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not issuer._gone.wait(0.02):
                    self.wfile.write(b"1\r\n \r\n")
                    self.wfile.flush()
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def issuing(authority: Authority, *keys: Key) -> Iterator[Issuer]:
    """An issuer for the length of a with statement; with these keys, or one of its own."""
    issuer = Issuer(authority, list(keys)) if keys else Issuer(authority)
    try:
        yield issuer
    finally:
        issuer.stop()
