"""An OAuth 2.0 authorisation server on loopback: real HTTP, tokens that Dovecot can ask about, and lies on demand."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus

from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles

CLIENT = "popproxy"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question at /token. `basic` is what stood in the Authorization header."""

    form: dict[str, str]
    basic: tuple[str, str] | None


@dataclass(slots=True)
class Said:
    """What to answer instead of the truth: `status`, `body` as it goes over the line, after `delay` seconds."""

    status: int = 200
    body: bytes = b""
    delay: float = 0.0
    location: str = ""


@dataclass
class TokenEndpoint:
    """``/token`` gives tokens to the client that knows `secret`, ``/introspect`` says whose they are.

    Refresh tokens are in `grants`, by user. `rotates`: each works once, and brings the next one.
    """

    url: str = ""
    ca: Path | None = None
    """Who vouches for its certificate."""
    secret: str = field(default_factory=lambda: canary("oauth-client"))
    lifetime: Any = 3600
    rotates: bool = False
    said: Said | None = None
    asked: list[Asked] = field(default_factory=list)
    grants: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Users of the access tokens that are good."""
    owner: str = ""
    """Whose those of the client itself are said to be: Dovecot knows no tokens that are good for everybody."""

    def grant(self, user: str) -> str:
        """A refresh token of the user's."""
        token = self.grants[user] = canary(f"refresh-{user}")
        return token

    def revoke(self) -> None:
        """No access token is good any more."""
        self.tokens.clear()

    def answer(self, asked: Asked) -> tuple[int, Mapping[str, Any]]:
        """The truth."""
        form = asked.form
        known = asked.basic or (form.get("client_id", ""), form.get("client_secret", ""))
        if known != (CLIENT, self.secret):
            return 401, {"error": "invalid_client", "error_description": f"AADSTS7000215: no {known[1]}"}
        user = self.owner
        if form["grant_type"] == "refresh_token":
            user = next((user for user, token in self.grants.items() if token == form["refresh_token"]), "")
            if not user:
                return 400, {"error": "invalid_grant"}
        token = f"{secrets.token_hex(24)}.{secrets.token_urlsafe(200)}"
        self.tokens[token] = user
        fields = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}
        if self.rotates and form["grant_type"] == "refresh_token":
            fields["refresh_token"] = self.grant(user)
        return 200, fields


def _handler(endpoint: TokenEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            form = {key: values[0] for key, values in parse_qs(octets.decode()).items()}
            if self.path == "/introspect":
                active = form.get("token", "") in endpoint.tokens
                self._send(
                    200, json.dumps({"active": active, "username": endpoint.tokens.get(form.get("token", ""), "")})
                )
                return
            asked = Asked(form, _basic(self.headers.get("Authorization")))
            endpoint.asked.append(asked)
            said = endpoint.said
            if said is None:
                status, fields = endpoint.answer(asked)
                self._send(status, json.dumps(fields))
                return
            time.sleep(said.delay)
            with contextlib.suppress(OSError):
                self._send(said.status, said.body.decode("latin-1"), said.location)

        def _send(self, status: int, body: str, location: str = "") -> None:
            octets = body.encode("latin-1")
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            self.wfile.write(octets)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _basic(header: str | None) -> tuple[str, str] | None:
    if not header or not header.startswith("Basic "):
        return None
    user, _, password = base64.b64decode(header[6:]).decode().partition(":")
    return unquote_plus(user), unquote_plus(password)


@contextlib.contextmanager
def token_endpoint(certificate: CertificateFiles, ca: Path) -> Iterator[TokenEndpoint]:
    """By HTTPS, for the length of a with statement."""
    endpoint = TokenEndpoint(ca=ca)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(endpoint))
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    endpoint.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="token endpoint", daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
