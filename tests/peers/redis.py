"""A real Redis, Debian's: a node, with a sentinel over it, or one of a cluster, which knows slots."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from tests.peers.process import Process, free_port, require


class Redis:
    """Started and stopped at will. Unless `durable`, it has forgotten everything when it starts again."""

    def __init__(
        self, *, cluster: bool = False, alone: bool = True, durable: bool = False, tls: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """`cluster`: as a node of one; it has all slots if it is `alone` there."""
        self._program = require("redis-server")
        self.directory = Path(tempfile.mkdtemp(prefix="popproxy-redis-"))
        self.directory.chmod(0o755)
        self.port = free_port()
        self.path = self.directory / "redis.sock"
        self._cluster = cluster
        self._alone = alone
        self._bus = free_port()
        self._options = [
            *(("--port", "0", "--tls-port") if tls else ("--port",)),
            *(str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--unixsocket", str(self.path), "--appendonly", "yes" if durable else "no", "--save", ""),
            *(("--cluster-enabled", "yes", "--cluster-port", str(self._bus)) if cluster else ()),
            *options,
        ]
        self._process: Process | None = None
        self._sentinel: Process | None = None
        self._sentinel_port = 0

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [self._program, *self._options]
        self._process = Process(f"redis {self.port}", command, self.directory / "log", self.directory)
        self._process.wait_for(self._answers, "redis answers")
        if self._cluster and self._alone:
            with self.client() as client:
                if client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] != "16384":
                    self.serve_slots(0, 16383)
            self._process.wait_for(self.whole, "the cluster is whole")

    def start_sentinel(self, primary: str, *, down_after: float = 30.0) -> int:
        """A sentinel that knows this node as `primary`. Returns its port.

        Once the node has not answered for `down_after` seconds a replica takes over, if there is one.
        """
        port = self._sentinel_port = free_port()
        file = self.directory / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor {primary} 127.0.0.1 {self.port} 1\n"
            f"sentinel down-after-milliseconds {primary} {down_after * 1000:.0f}\n"
        )
        command = [self._program, str(file), "--sentinel"]
        self._sentinel = Process(f"sentinel {port}", command, self.directory / "sentinel.log", self.directory)

        def knows() -> bool:
            with contextlib.suppress(redis.RedisError), redis.Redis(port=port) as client:
                return bool(client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", primary))
            return False

        self._sentinel.wait_for(knows, "the sentinel knows its primary")
        return port

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it."""
        process, self._process = self._process, None
        if process is not None:
            process.signal(signal.SIGCONT)
            process.stop()

    def freeze(self) -> None:
        """It accepts connections and says nothing, until `thaw`."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """See `freeze`."""
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A client of the test's own, with all rights."""
        return redis.Redis(unix_socket_path=str(self.path), protocol=2)

    def calls(self) -> dict[str, int]:
        """How often each command was called since the start, by clients and by scripts."""
        with self.client() as client:
            found = client.info("commandstats")
        return {name.removeprefix("cmdstat_"): values["calls"] for name, values in found.items()}

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def replicas_known(self, primary: str) -> int:
        """How many replicas of `primary` its sentinel knows."""
        with redis.Redis(port=self._sentinel_port, protocol=2) as client:
            return len(client.execute_command("SENTINEL REPLICAS", primary))

    # ---- as a node of a cluster ----

    def serve_slots(self, first: int, last: int) -> None:
        """Have these."""
        with self.client() as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)

    def meet(self, other: Redis) -> None:
        """Join the cluster that the other is in."""
        with self.client() as client:
            client.execute_command("CLUSTER MEET", "127.0.0.1", other.port, other._bus)

    def knows(self) -> int:
        """How many nodes there are, this one included."""
        with self.client() as client:
            return int(client.execute_command("CLUSTER INFO")["cluster_known_nodes"])

    def replicate(self, primary: Redis) -> None:
        """Follow a primary."""
        with primary.client() as client:
            name = client.execute_command("CLUSTER MYID")
        with self.client() as client:
            client.execute_command("CLUSTER REPLICATE", name)

    def whole(self) -> bool:
        """Are all slots served, as far as it knows?"""
        with self.client() as client:
            return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        if self._sentinel is not None:
            self._sentinel.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
