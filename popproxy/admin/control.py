"""The server of the control socket: who may give commands, and how their answers get there."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass

from popproxy.admin.commands import Role
from popproxy.admin.control_socket import ControlSocket, Peer, peer_of
from popproxy.admin.desk import Desk, Operator
from popproxy.admin.frames import HEADER, MAX_REQUEST, decode, encode, length
from popproxy.errors import RemoteProtocolError
from popproxy.observe.logs import get_logger

CONNECTIONS = 16
"""Operators at a time; one more is turned away. As many others may wait for a refusal, and take no place from them."""
IDLE = 300.0
"""Seconds between two requests, and for taking an answer."""

log = get_logger("control")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may give commands, by the numbers that the kernel knows."""

    users: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def named(cls, users: Iterable[str], groups: Iterable[str]) -> Allowed:
        """Root, the user that this process runs as, and who is named. Names that do not exist are nobody."""
        known = {0, os.geteuid(), *_numbers(users, lambda name: pwd.getpwnam(name).pw_uid)}
        return cls(frozenset(known), frozenset(_numbers(groups, lambda name: grp.getgrnam(name).gr_gid)))

    def may(self, peer: Peer) -> bool:
        """May this one?"""
        return peer.uid in self.users or bool(self.groups & peer.groups)


class ControlServer:
    """Answers the commands that come over a socket."""

    def __init__(self, bound: ControlSocket, desk: Desk, allowed: Allowed) -> None:
        self.bound = bound
        self._desk = desk
        self._allowed = allowed
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], bool] = {}  # may they give commands?

    async def start(self) -> None:
        """Take commands from now on."""
        self._server = await asyncio.start_unix_server(self._connected, sock=self.bound.sock)

    def admit(self, allowed: Allowed) -> None:
        """From now on these may give commands."""
        self._allowed = allowed

    def retire(self) -> None:
        """Take the socket away, and no new connections; those that are there go on."""
        if self._server is not None:
            self._server.close()
        self.bound.close()

    async def stop(self) -> None:
        """End all connections, take the socket away."""
        self.retire()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        may = self._allowed.may(peer_of(sock))
        if list(self._connections.values()).count(may) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections[task] = may
        task.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        try:
            peer = peer_of(sock)
            more = True
            while more:
                operator = self._operator(peer)  # asked anew for each command; who may not gets one answer
                async with asyncio.timeout(IDLE):
                    octets = await reader.readexactly(length(await reader.readexactly(HEADER), MAX_REQUEST))
                request = decode(octets)
                name = request.get("command")
                answers = self._desk.answers(name, request.get("arguments", {}), operator)
                if operator.role is not None and self._desk.streams(name):
                    more = await self._send_until_gone(reader, writer, answers)
                else:
                    await self._send(writer, answers)
                    more = operator.role is not None
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # the operator has gone
        except RemoteProtocolError as error:
            log.warning("not a request on the control socket", why=str(error))
        finally:
            writer.close()

    def _operator(self, peer: Peer) -> Operator:
        """Whoever may give commands here may give all of them."""
        who = {"user.name": peer.name, "user.id": str(peer.uid), "popproxy.operator_pid": peer.pid}
        return Operator(peer.name, Role.OPERATOR if self._allowed.may(peer) else None, who)

    async def _send(self, writer: asyncio.StreamWriter, answers: AsyncGenerator[dict[str, object], None]) -> None:
        async for answer in answers:
            async with asyncio.timeout(IDLE):
                writer.write(encode(answer))
                await writer.drain()

    async def _send_until_gone(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: AsyncGenerator[dict[str, object], None],
    ) -> bool:
        """Answer after answer, as long as whoever asked is there and says nothing. False if he went, or spoke."""
        sending = asyncio.ensure_future(self._send(writer, answers))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            ended, heard = await asyncio.gather(sending, gone, return_exceptions=True)
            await answers.aclose()
        return ended is None and isinstance(heard, asyncio.CancelledError)


def _numbers(names: Iterable[str], look_up: Callable[[str], int]) -> list[int]:
    found = []
    for name in names:
        try:
            found.append(look_up(name))
        except KeyError:
            log.warning("named in control, but does not exist", name=name)
    return found
