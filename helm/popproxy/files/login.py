"""`helm test`: talks to every listener of the Service as a mail client does, and logs in if there is a user for it.

Exit status 0 if every listener has answered as it should. Names and texts of servers are printed, passwords never.
"""

import json
import os
import poplib
import ssl
import sys
from typing import Any

TIMEOUT = 30.0  # seconds


def context(server_name: str) -> ssl.SSLContext:
    """Verifies certificates if there is a name that they must be for."""
    made = ssl.create_default_context()
    if not server_name:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


class Pop3(poplib.POP3):
    """poplib's client, to which a certificate may be for another name than the Service's."""

    def __init__(self, host: str, port: int, tls: str, server_name: str) -> None:
        self._implicit = tls == "implicit"
        self._context = context(server_name)
        self._server_name = server_name or host
        super().__init__(host, port, timeout=TIMEOUT)
        if tls == "stls":
            self._shortcmd("STLS")
            self.sock = self._secured(self.sock)
            self.file = self.sock.makefile("rb")

    def _create_socket(self, timeout: float) -> Any:
        plain = super()._create_socket(timeout)  # type: ignore[misc] # typeshed does not know it
        return self._secured(plain) if self._implicit else plain

    def _secured(self, plain: Any) -> ssl.SSLSocket:
        return self._context.wrap_socket(plain, server_hostname=self._server_name)


def visit(listener: dict[str, Any], host: str, server_name: str, user: str, password: str) -> str:
    """What became of it. Raises OSError, EOFError and poplib.error_proto."""
    client = Pop3(host, listener["port"], listener["tls"], server_name)
    try:
        able = sorted(client.capa())
        if not user:
            return f"greets, and can do {' '.join(able)}; test.secret names no user to log in as"
        if listener["tls"] == "none":
            return "greets; nobody logs in without TLS here"
        client.user(user)
        client.pass_(password)
        messages, octets = client.stat()
        return f"has let {user} in: {messages} messages, {octets} octets"
    finally:
        client.quit()


def main() -> int:
    """One line for each listener."""
    host, server_name = os.environ["POPPROXY_HOST"], os.environ.get("POPPROXY_SERVER_NAME", "")
    user, password = os.environ.get("POPPROXY_USER", ""), os.environ.get("POPPROXY_PASSWORD", "")
    failed = False
    listeners = json.loads(os.environ["POPPROXY_LISTENERS"])
    if not listeners:
        print("nothing to try: every listener speaks KPOP or wants a PROXY header")
    for listener in listeners:
        name = f"{listener['name']} ({host}:{listener['port']})"
        try:
            print(f"ok       {name} {visit(listener, host, server_name, user, password)}")
        except (OSError, EOFError, poplib.error_proto) as error:
            failed = True
            print(f"problem  {name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
