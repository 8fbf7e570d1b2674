"""An auth_http responder, as people write them for nginx: a small web server with a table of users.

It can be stopped and started, be silent, and say anything. It keeps the headers of every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import socketserver
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.peers.certs import CertificateFiles
from tests.peers.process import free_port

Headers = Mapping[str, str]
BAD = {"Auth-Status": "Invalid login or password", "Auth-Wait": "3"}


@dataclass
class Account:
    """A user: the password, and what a right one is answered with besides."""

    password: str
    headers: dict[str, str] = field(default_factory=dict)


class Responder:
    """Serves `users` at `url` until it is stopped. `says` replaces the answer: octets, or a function of the request."""

    def __init__(
        self, users: Mapping[str, Account], certificate: CertificateFiles | None = None, path: Path | None = None
    ) -> None:
        self.users = dict(users)
        self.requests: list[dict[str, str]] = []
        self.says: bytes | Callable[[socket.socket], None] | None = None
        self._certificate = certificate
        self._path = path
        self._port = 0 if path else free_port()
        self._server: socketserver.BaseServer | None = None
        self._silence = threading.Event()
        self._silence.set()
        self.start()

    @property
    def url(self) -> str:
        """What popproxy is told."""
        if self._path is not None:
            return f"http://unix:{self._path}:/auth"
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self._port}/auth"

    def start(self) -> None:
        """Listen, at the same place each time."""
        responder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                responder.answer(self)

            def log_message(self, format: str, *_: object) -> None:
                pass

            def address_string(self) -> str:
                return "client"

        class TcpServer(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass

            def finish_request(self, request: object, client_address: object) -> None:
                assert isinstance(request, socket.socket)
                if responder._certificate is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(responder._certificate.cert, responder._certificate.key)
                    request = context.wrap_socket(request, server_side=True)
                super().finish_request(request, client_address)

        class UnixServer(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

        if self._path is not None:
            self._path.unlink(missing_ok=True)
            server: socketserver.BaseServer = UnixServer(str(self._path), Handler)
            self._path.chmod(0o666)
        else:
            server = TcpServer(("127.0.0.1", self._port), Handler)
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.02,), name="auth_http", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and end those that are there."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def freeze(self) -> None:
        """Take connections and requests, and answer nothing."""
        self._silence.clear()

    def thaw(self) -> None:
        """Answer, those too that have waited."""
        self._silence.set()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        # http.server takes octets for Latin-1
        request = {name: value.encode("latin-1").decode() for name, value in handler.headers.items()}
        self.requests.append(request)
        self._silence.wait(60)
        if self._server is None:
            handler.close_connection = True
            return
        if isinstance(self.says, bytes):
            handler.close_connection = True
            handler.wfile.write(self.says)
        elif self.says is not None:
            handler.close_connection = True
            self.says(handler.connection)
        else:
            handler.send_response(200)
            for name, value in self.judge(request).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def judge(self, request: Headers) -> Headers:
        """As the documentation of nginx has it."""
        user = urllib.parse.unquote(request["Auth-User"])
        account = self.users.get(user)
        if account is not None and request["Auth-Method"] == "none":
            return {"Auth-Status": "OK", **account.headers}
        if account is None or request["Auth-Pass"] == "":
            return BAD
        given, secret = urllib.parse.unquote(request["Auth-Pass"]), account.password.encode()
        match request["Auth-Method"]:
            case "plain":
                right = given == account.password
            case "apop":
                right = given == hashlib.md5(request["Auth-Salt"].encode() + secret).hexdigest()
            case "cram-md5":
                right = given == hmac.digest(secret, request["Auth-Salt"].encode(), "md5").hex()
            case _:
                right = False
        if not right:
            return BAD
        own = {} if request["Auth-Method"] == "plain" else {"Auth-Pass": account.password}
        return {"Auth-Status": "OK", **own, **account.headers}


@contextlib.contextmanager
def responder(
    users: Mapping[str, Account], certificate: CertificateFiles | None = None, path: Path | None = None
) -> Iterator[Responder]:
    """A responder for the length of a with statement."""
    running = Responder(users, certificate, path)
    try:
        yield running
    finally:
        running.thaw()
        running.stop()
