"""Three replicas, which are three processes, behind a real HAProxy, with one real Redis; and people who use them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.peers.dovecot import Dovecot
from tests.peers.line_client import LineClient
from tests.peers.process import Process, accepts, free_port, public_directory, require, wait_until
from tests.peers.proxy import Proxy, StartProxy, proxies, settings
from tests.peers.redis import Redis

LIMIT = 6
"""Maildrops that a user may have open."""
LIFETIME = 3
"""Seconds after which a replica counts as dead."""
_HAPROXY = """\
defaults
  mode tcp
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  retries 5
  option redispatch 1
listen pop3
  bind 127.0.0.1:{port}
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 200ms fall 3 rise 1 send-proxy-v2
"""


def shared_state(redis: Redis, directory: Path) -> dict[str, Any]:
    """The section for a replica; its secret is put into `directory`."""
    key = directory / "shared.key"
    key.write_text("only the replicas of this test know it")
    key.chmod(0o600)
    return {
        "url": f"redis://127.0.0.1:{redis.port}", "key": {"file": str(key)}, "timeout": "500ms",
        "lifetime": f"{LIFETIME}s",
    }  # fmt: skip


@dataclass
class Replicas:
    """All of it."""

    redis: Redis
    replicas: list[Proxy]
    port: int
    server: Dovecot

    def log_in(self, port: int, user: str = "alice", password: str | None = None) -> tuple[bytes, LineClient]:
        """The answer to PASS, and the client."""
        client = LineClient(port)
        assert client.line().startswith(b"+OK")
        assert client.command(f"USER {user}").startswith(b"+OK")
        return client.command(f"PASS {password or self.server.users[user]}"), client

    def try_in(self, port: int, user: str = "alice") -> bool:
        """Would the user get in there? If so, he goes at once."""
        answer, client = self.log_in(port, user)
        with client:
            if answer.startswith(b"+OK"):
                client.command("QUIT")
                return True
        assert b"[IN-USE]" in answer, answer
        return False

    def all_up(self, members: int = 3) -> None:
        """Wait until every replica that is there reaches Redis and knows of the others."""

        def up() -> bool:
            return all(
                found["popproxy_shared_state_up"] == 1 and found["popproxy_shared_state_members"] == members
                for found in (replica.metrics() for replica in self.replicas)
            )

        wait_until(up, "all replicas share their state", 60)

    def kill(self, replica: Proxy) -> None:
        """SIGKILL, for all of its processes at once."""
        self.replicas.remove(replica)
        replica._stopped = True
        for pid in _with_children(replica.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def configuration(server: Dovecot, redis: Redis, directory: Path, port: int = 0, **sections: Any) -> dict[str, Any]:
    """Of one replica."""
    return settings(
        f"127.0.0.1:{server.port}",
        listener={"proxy_protocol": ["127.0.0.1/32"], "listen": [f"127.0.0.1:{port}"]},
        shared_state=shared_state(redis, directory),
        limits={"sessions_per_user": LIMIT, "sessions_per_user_and_address": LIMIT, "connections_per_address": 5000},
        penalties={"user_address": {"free": 3, "per_minute": 1}},
        timeouts={"drain": "20s", "login": "30s"},
        logging={"level": "info", "format": "json"},
        **sections,
    )


@contextlib.contextmanager
def replicas(server: Dovecot, start: StartProxy, directory: Path) -> Iterator[Replicas]:
    """Started, and knowing of each other."""
    with Redis() as redis:
        made = [start(configuration(server, redis, directory)) for _ in range(3)]
        port = free_port()
        file = directory / "haproxy.cfg"
        lines = [
            f"  server replica{number} 127.0.0.1:{one.port()} port {one._http}" for number, one in enumerate(made)
        ]  # fmt: skip
        file.write_text(_HAPROXY.format(port=port) + "\n".join(lines) + "\n")
        balancer = Process("haproxy", [require("haproxy"), "-db", "-f", file], directory / "haproxy.log", directory)
        try:
            balancer.wait_for(lambda: accepts(port), "HAProxy")
            it = Replicas(redis, made, port, server)
            it.all_up()
            yield it
        finally:
            balancer.stop()


@dataclass
class Load:
    """People who log in, look, and go, again and again; and some who stay."""

    port: int
    users: dict[str, str]
    done: int = 0
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)
    _ending: bool = False

    async def run(self) -> None:
        """Until `end`."""
        await asyncio.gather(*(self._person(user, stays=number % 4 == 0) for number, user in enumerate(self.users)))

    def end(self) -> None:
        """Everybody goes when he is through."""
        self._ending = True

    async def _person(self, user: str, *, stays: bool) -> None:
        while not self._ending:
            began = time.monotonic()
            story = "connect"
            try:
                async with asyncio.timeout(60):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    try:
                        for story in ("", f"USER {user}", f"PASS {self.users[user]}", *["STAT", "NOOP"], "QUIT"):
                            if story:
                                writer.write(story.encode() + b"\r\n")
                            answer = await reader.readline()
                            if not answer.startswith(b"+OK"):
                                self.broken.append(f"{story.partition(' ')[0]}: {answer!r}")
                                break
                            if story == "STAT":
                                self.slowest = max(self.slowest, time.monotonic() - began)
                            if story == "NOOP" and stays:
                                await asyncio.sleep(2.0)
                        else:
                            self.done += 1
                    finally:
                        writer.close()
            except (OSError, TimeoutError) as error:
                self.broken.append(f"{story.partition(' ')[0]}: {error!r}")
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def started() -> Iterator[tuple[StartProxy, Path]]:
    """For a fixture: what starts proxies, and a directory."""
    with proxies() as start, public_directory("replicas") as directory:
        yield start, directory
