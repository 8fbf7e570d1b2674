"""Operators' orders in a file of JSON, which several processes of a host may share; replaced whole, under a lock."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

from popproxy.errors import ConfigError, Problem, Unavailable
from popproxy.observe.logs import get_logger
from popproxy.state.orders import Closed, Hold, Move, Orders

FILE = "orders.json"
_VERSION = 1
_STATES = {"drain": "drain", "maintenance": "maintenance"}
_PATIENCE = 5.0  # seconds for the lock
_PAUSE = 0.02

log = get_logger("orders")


class FileOrders:
    """See OrderBook."""

    kept = True

    def __init__(self, directory: Path, remember: float) -> None:
        """`remember`: seconds for which holds that are over count. Raises ConfigError if the file cannot be used."""
        self._path = directory / FILE
        self._lock = directory / f".{FILE}.lock"
        self._remember = remember
        self._complained = False
        self._seen = _fingerprint(self._path)
        self.orders = read_orders(directory)

    async def change(self, update: Callable[[Orders], Orders]) -> None:
        """See OrderBook."""
        try:
            self.orders, self._seen = await asyncio.to_thread(self._change, update)
        except (OSError, ConfigError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise Unavailable(f"{self._path} cannot be written: {why}") from None

    def refresh(self) -> bool:
        """See OrderBook. A file that cannot be read changes nothing, and is complained of once."""
        seen = _fingerprint(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self.orders = read_orders(self._path.parent)
        except ConfigError as error:
            if not self._complained:
                log.error("the orders read before stay in force", why=str(error))
            self._complained = True
            return False
        self._complained = False
        return True

    def _change(self, update: Callable[[Orders], Orders]) -> tuple[Orders, object]:
        with self._locked():
            orders = update(read_orders(self._path.parent)).without_holds_before(time.time() - self._remember)
            temporary = self._path.with_name(f".{FILE}.{secrets.token_hex(8)}.tmp")
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(encode(orders))
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, self._path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            return orders, _fingerprint(self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_up = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= give_up:
                        raise
                    time.sleep(_PAUSE)
            yield
        finally:
            os.close(descriptor)


def read_orders(directory: Path) -> Orders:
    """What the file in this directory says; nothing if there is none. Raises ConfigError."""
    path = directory / FILE
    try:
        octets = path.read_bytes()
    except FileNotFoundError:
        if not directory.is_dir():
            cure = f"install -d -m 700 {directory}, owned by process.user"
            raise ConfigError([Problem(str(directory), "", "the directory does not exist", cure)]) from None
        return Orders()
    except OSError as error:
        cure = "let process.user read it"
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None
    try:
        return decode(octets)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        cure = "repair it; without it, held users would get in, and moved users would find no mail"
        raise ConfigError([Problem(str(path), "", f"does not hold orders: {error!r}", cure)]) from None


def encode(orders: Orders) -> bytes:
    """As JSON, for people too."""
    document = {
        "version": _VERSION,
        "holds": {
            user: {"since": hold.since, "until": None if hold.until == inf else hold.until, "wait": hold.wait}
            for user, hold in orders.holds.items()
        },
        "moves": {
            user: {"since": move.since, "pool": move.pool, "server": move.server, "backend_user": move.backend_user}
            for user, move in orders.moves.items()
        },
        "servers": [
            {"pool": pool, "server": server, "state": closed.state, "since": closed.since}
            for (pool, server), closed in orders.servers.items()
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def decode(octets: bytes) -> Orders:
    """Raises ValueError, TypeError, KeyError or AttributeError for what `encode` does not make."""
    document = json.loads(octets)
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']}")
    return Orders(
        {user: _hold(one) for user, one in document["holds"].items()},
        {user: _move(one) for user, one in document["moves"].items()},
        {
            (_text(one["pool"]), _text(one["server"])): Closed(float(one["since"]), _STATES[one["state"]])
            for one in document["servers"]
        },
    )


def _hold(one: Mapping[str, Any]) -> Hold:
    if not isinstance(one["wait"], bool):
        raise TypeError("wait")
    return Hold(float(one["since"]), inf if one["until"] is None else float(one["until"]), one["wait"])


def _move(one: Mapping[str, Any]) -> Move:
    server, name = (None if one[key] is None else _text(one[key]) for key in ("server", "backend_user"))
    return Move(float(one["since"]), _text(one["pool"]), server, name)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _fingerprint(path: Path) -> object:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns
