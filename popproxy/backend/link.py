"""One connection to one server: connect, TLS, greeting, login. Nothing is tried a second time here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from popproxy.backend.access_tokens import give_token
from popproxy.backend.dialogue import Dialogue, Turn
from popproxy.backend.kerberos_logins import make_token
from popproxy.backend.pins import check_pin
from popproxy.backend.places import Place
from popproxy.backend.pool import Backend, Pool
from popproxy.config.model import Timeouts
from popproxy.errors import BackendError, ChannelClosed, ConnectFailed, TlsFailed
from popproxy.net.channel import NOT_REACHED, Channel
from popproxy.net.connect import connect
from popproxy.net.deadlines import Deadlines
from popproxy.net.reactor import Reactor
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import AccessTokenNeeded, LoggedIn, Refused, StartTls
from popproxy.pop3.logins import Login
from popproxy.types import Address
from popproxy.wire.proxy_protocol import introduce
from popproxy.wire.visitor import Visitor

log = get_logger("backend")


@dataclass(frozen=True, slots=True)
class Opened:
    """An open maildrop: the channel is ours, at the beginning of TRANSACTION, with nothing unread."""

    channel: Channel
    backend: Backend
    peer: Address
    login: Login


@dataclass(frozen=True, slots=True)
class NotOpened:
    """The server refused the login. `code` as in `Refused`."""

    backend: Backend
    login: Login
    code: str | None


class Attempt:
    """A connection that is to be made to one server of a pool, until loop time `give_up`. `turn`: there are others.

    `visitor` is whom the server is told of, None if it is we who want to know how it is.
    """

    __slots__ = ("backend", "give_up", "place", "pool", "turn", "visitor")

    def __init__(
        self, pool: Pool, backend: Backend, give_up: float, visitor: Visitor | None = None, turn: Turn | None = None,
        place: Place | None = None,
    ) -> None:  # fmt: skip
        self.pool = pool
        self.backend = backend
        self.give_up = give_up
        self.visitor = visitor
        self.turn = turn
        self.place = place  # of the connection, where there are limits


class Linker:
    """Makes connections to servers. One for the process."""

    def __init__(self, reactor: Reactor, deadlines: Deadlines, timeouts: Timeouts, metrics: Metrics) -> None:
        self._reactor = reactor
        self._deadlines = deadlines
        self._timeouts = timeouts
        self._metrics = metrics

    async def reach(
        self, attempt: Attempt, address: Address, core: ClientConnection, login_seconds: float
    ) -> tuple[LoggedIn | Refused, Dialogue]:
        """Connect, and let `core` talk to the server. The channel is open if it has logged in.

        Raises BackendError, and Overtaken instead of sending a credential that another attempt has sent.
        """
        loop = self._reactor.loop
        event: LoggedIn | Refused | None = None
        connect_by = min(loop.time() + self._timeouts.connect, attempt.give_up)
        channel = await self._connect(attempt, address, connect_by)
        dialogue = Dialogue(channel, core, loop, connect_by, attempt.give_up, login_seconds, attempt.turn)
        self._deadlines.add(dialogue)
        try:
            event = await self._talk(attempt.pool, attempt.backend, dialogue)
        finally:
            self._deadlines.discard(dialogue)
            if not isinstance(event, LoggedIn):
                channel.abort()  # R3: no QUIT, and nothing buffered may be read as a command
                del dialogue.waiter  # it holds the exception, whose traceback holds this frame
        return event, dialogue

    async def _connect(self, attempt: Attempt, address: Address, deadline: float) -> Channel:
        """A channel on its way to the server; with implicit TLS, one that is there."""
        pool, place = attempt.pool, attempt.place
        try:
            ended = None if place is None else place.release
            way = pool.way_to(attempt.backend)
            if way is None:
                channel = connect(self._reactor, address, pool.config.source_address, ended)
            else:
                channel = await way.open(address, deadline, ended)
        except BaseException as error:
            if place is not None:
                place.release()
            if isinstance(error, ConnectFailed):
                raise BackendError(str(error), "connect", error.reason) from None
            raise
        if pool.config.proxy_header != "none":
            channel.write(introduce(pool.config.proxy_header, attempt.visitor))
        if pool.config.tls == "implicit":
            unreachable = self._reactor.loop.call_at(deadline, _late, channel, attempt.turn)
            try:
                async with asyncio.timeout_at(deadline + self._timeouts.handshake):
                    await self._start_tls(pool, attempt.backend, channel)
            except TimeoutError:
                channel.abort()
                raise BackendError("no TLS handshake in time", "tls", "timeout") from None
            except BaseException:
                channel.abort()
                raise
            finally:
                unreachable.cancel()
        return channel

    async def _talk(self, pool: Pool, backend: Backend, dialogue: Dialogue) -> LoggedIn | Refused:
        core, gss = dialogue.core, None
        event = await dialogue.waiter
        while not isinstance(event, LoggedIn | Refused):
            if isinstance(event, StartTls):
                await self._start_tls(pool, backend, dialogue.channel)
                core.upgrade_to_tls()
            elif isinstance(event, AccessTokenNeeded):
                await give_token(dialogue.channel, core, event)
            else:
                gss = await make_token(pool, backend, dialogue.channel, core, event, gss, self._metrics)
            dialogue.waiter = self._reactor.loop.create_future()
            dialogue.go_on()
            event = await dialogue.waiter
        return event

    async def _start_tls(self, pool: Pool, backend: Backend, channel: Channel) -> None:
        try:
            agreed = await channel.connect_tls(pool.tls, backend.name)
            check_pin(pool, channel)
            self._metrics.backend_tls_handshakes[(backend.label, agreed.version)] += 1
        except TlsFailed as error:
            log.error("TLS to a backend failed", backend=backend.label, why=str(error))
            raise BackendError(str(error), "tls", "tls") from None
        except ChannelClosed as error:
            stage = "connect" if error.reason in NOT_REACHED.values() else "tls"
            raise BackendError(str(error), stage, error.reason) from None


def _late(channel: Channel, turn: Turn | None) -> None:
    """The time for connecting is over, and TLS is not there yet."""
    if not channel.connected or (channel.handshaking and turn is not None and not turn.late()):
        channel.abort("timeout")
