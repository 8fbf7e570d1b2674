"""The server of the control socket: who may give commands, one answer to each, one audit record for each."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from popproxy.admin.commands import Commands
from popproxy.admin.control_socket import ControlSocket, Peer, peer_of
from popproxy.admin.frames import HEADER, MAX_REQUEST, CommandFailed, Reason, decode, encode, length
from popproxy.config.model_abuse import Control
from popproxy.errors import RemoteProtocolError
from popproxy.observe.audit import AuditLog
from popproxy.observe.logs import get_logger
from popproxy.types import Outcome

CONNECTIONS = 16
"""Operators at a time; one more is turned away."""
IDLE = 300.0
"""Seconds between two requests, and for taking an answer."""

log = get_logger("control")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may give commands, by the numbers that the kernel knows."""

    users: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def from_config(cls, config: Control) -> Allowed:
        """Root, the user that this process runs as, and who is named. Names that do not exist are nobody."""
        users = {0, os.geteuid(), *_numbers(config.users, lambda name: pwd.getpwnam(name).pw_uid)}
        named = [*config.groups, *([config.group] if config.group else [])]
        return cls(frozenset(users), frozenset(_numbers(named, lambda name: grp.getgrnam(name).gr_gid)))

    def may(self, peer: Peer) -> bool:
        """May this one?"""
        return peer.uid in self.users or bool(self.groups & peer.groups)


class ControlServer:
    """Answers the commands that come over a socket."""

    def __init__(self, bound: ControlSocket, commands: Commands, allowed: Allowed, audit: AuditLog) -> None:
        self._bound = bound
        self._commands = commands
        self._allowed = allowed
        self._audit = audit
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take commands from now on."""
        self._server = await asyncio.start_unix_server(self._connected, sock=self._bound.sock)

    async def stop(self) -> None:
        """End all connections, take the socket away."""
        if self._server is not None:
            self._server.close()
        self._bound.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        try:
            peer = peer_of(sock)
            allowed = True
            while allowed:
                allowed = self._allowed.may(peer)  # who is not gets one answer
                async with asyncio.timeout(IDLE):
                    octets = await reader.readexactly(length(await reader.readexactly(HEADER), MAX_REQUEST))
                answer = await self._answer(decode(octets), peer, allowed)
                async with asyncio.timeout(IDLE):
                    writer.write(encode(answer))
                    await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # the operator has gone
        except RemoteProtocolError as error:
            log.warning("not a request on the control socket", why=str(error))
        finally:
            writer.close()

    async def _answer(self, request: Mapping[str, object], peer: Peer, allowed: bool) -> dict[str, object]:
        name, arguments = request.get("command"), request.get("arguments", {})
        try:
            if not allowed:
                raise CommandFailed(
                    Reason.DENIED, f"{peer.name} may not give commands; see control in the configuration"
                )
            if not isinstance(arguments, dict):
                raise CommandFailed(Reason.BAD_ARGUMENTS, "arguments must be an object")
            result = await self._commands.execute(name, arguments)
        except CommandFailed as error:
            self._record(Outcome.FAILURE, peer, name, arguments, error.reason)
            return {"error": {"reason": error.reason, "text": str(error)}}
        except Exception:
            log.exception("a command failed", command=str(name))
            self._record(Outcome.FAILURE, peer, name, arguments, Reason.INTERNAL)
            return {"error": {"reason": Reason.INTERNAL, "text": "internal error; popproxy's log says more"}}
        self._record(Outcome.SUCCESS, peer, name, arguments, None)
        return {"result": result}

    def _record(self, outcome: Outcome, peer: Peer, name: object, arguments: object, reason: Reason | None) -> None:
        """Who has asked for what. Nobody waits for the record: operators are needed when the disk is full."""
        why = {} if reason is None else {"event.reason": reason}
        fields = {"popproxy.command": name if isinstance(name, str) else None, "popproxy.arguments": _shown(arguments)}
        who = {"user.name": peer.name, "user.id": str(peer.uid), "popproxy.operator_pid": peer.pid}
        self._audit.event("admin", outcome, **why, **fields, **who)


def _shown(arguments: object) -> object:
    """For the record. No command takes what is nested, and a stranger's may be too deep to be written."""
    flat = isinstance(arguments, dict) and all(
        value is None or isinstance(value, str | int | float) for value in arguments.values()
    )
    return arguments if flat else "(not an object with plain values)"


def _numbers(names: Iterable[str], look_up: Callable[[str], int]) -> list[int]:
    found = []
    for name in names:
        try:
            found.append(look_up(name))
        except KeyError:
            log.warning("named in control, but does not exist", name=name)
    return found
