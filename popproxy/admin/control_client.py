"""The other end of the control socket, for the command line: one request, one answer, no event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from popproxy.admin.frames import HEADER, MAX_ANSWER, CommandFailed, Reason, decode, encode, length
from popproxy.errors import RemoteProtocolError, Unavailable

PATIENCE = 30.0
"""Seconds to wait for an answer."""
LONG = {"reload": 150.0, "upgrade": 210.0}
"""For what starts processes: app/child gives them two minutes, app/upgrade another one to be loaded."""


def ask(path: Path, command: str, **arguments: object) -> object:
    """Have a running popproxy carry out a command; returns its result.

    Raises CommandFailed if it does not, Unavailable if nobody answers at `path`.
    """
    with _connected(path, command, arguments) as sock:
        return _result(_frame(sock))


def follow(path: Path, command: str, **arguments: object) -> Iterator[object]:
    """The events of a command that streams, as they come, until it ends or the iterator is closed. Raises as `ask`."""
    with _connected(path, command, arguments) as sock:
        answer = _frame(sock)
        while "event" in answer:
            yield answer["event"]
            sock.settimeout(None)
            answer = _frame(sock)
        _result(answer)


@contextlib.contextmanager
def _connected(path: Path, command: str, arguments: Mapping[str, object]) -> Iterator[socket.socket]:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            patience = LONG.get(command, PATIENCE)
            sock.settimeout(patience)
            sock.connect(str(path))
            sock.sendall(encode({"command": command, "arguments": arguments}))
            yield sock
    except PermissionError:
        text = f"{path} may not be used by this user; see control in the configuration"
        raise CommandFailed(Reason.DENIED, text) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unavailable(f"no popproxy answers at {path}; is it running, with this configuration?") from None
    except TimeoutError:
        text = f"no answer to {command} within {patience:g} s; it may be carried out yet: popproxy's log says more"
        raise Unavailable(f"{path}: {text}") from None
    except (OSError, EOFError, RemoteProtocolError) as error:
        raise Unavailable(f"{path}: {error}") from None


def _frame(sock: socket.socket) -> dict[str, Any]:
    return decode(_exactly(sock, length(_exactly(sock, HEADER), MAX_ANSWER)))


def _result(answer: Mapping[str, Any]) -> object:
    failed = answer.get("error")
    if isinstance(failed, dict):
        raise CommandFailed(Reason(failed["reason"]), str(failed["text"]))
    return answer.get("result")


def _exactly(sock: socket.socket, count: int) -> bytes:
    octets = bytearray()
    while len(octets) < count:
        part = sock.recv(min(count - len(octets), 1 << 16))
        if not part:
            raise EOFError("the connection ended without an answer; the log of popproxy says more")
        octets += part
    return bytes(octets)
