"""Asks the running popproxy how it is, as a container engine or a load balancer would."""

from __future__ import annotations

import http.client
from http import HTTPStatus

from popproxy.errors import ConnectFailed
from popproxy.types import Address

_TIMEOUT = 5.0  # seconds
_MOST = 64 << 10  # octets of an answer


def ask(listen: Address, path: str) -> tuple[bool, str]:
    """Whether what listens at `listen` (``http.listen``) says 200 to `path`, and its words.

    Raises ConnectFailed if nothing listens there, or what answers is slow or speaks no HTTP.
    """
    connection = http.client.HTTPConnection(_reachable(listen.host), listen.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == HTTPStatus.OK, response.read(_MOST).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectFailed(f"popproxy does not answer at http://{listen}{path}: {why}", "connect") from error
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """Where to ask what listens on every address."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - no binding
