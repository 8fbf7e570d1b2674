"""A real Redis, Debian's: one node, with a sentinel over it, or a cluster of one node, which knows slots."""

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
        self, *, cluster: bool = False, durable: bool = False, tls: bool = False, options: tuple[str, ...] = ()
    ) -> None:
        self._program = require("redis-server")
        self.directory = Path(tempfile.mkdtemp(prefix="popproxy-redis-"))
        self.directory.chmod(0o755)
        self.port = free_port()
        self.path = self.directory / "redis.sock"
        self._cluster = cluster
        self._options = [
            *(("--port", "0", "--tls-port") if tls else ("--port",)),
            *(str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--unixsocket", str(self.path), "--appendonly", "yes" if durable else "no", "--save", ""),
            *(("--cluster-enabled", "yes", "--cluster-port", str(free_port())) if cluster else ()),
            *options,
        ]
        self._process: Process | None = None
        self._sentinel: Process | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [self._program, *self._options]
        self._process = Process(f"redis {self.port}", command, self.directory / "log", self.directory)
        self._process.wait_for(self._answers, "redis answers")
        if self._cluster:
            with self.client() as client:
                if client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] != "16384":
                    client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            self._process.wait_for(self._whole, "the cluster is whole")

    def start_sentinel(self, primary: str) -> int:
        """A sentinel that knows this node as `primary`. Returns its port."""
        port = free_port()
        file = self.directory / "sentinel.conf"
        file.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor {primary} 127.0.0.1 {self.port} 1\n")
        command = [self._program, str(file), "--sentinel"]
        self._sentinel = Process(f"sentinel {port}", command, self.directory / "sentinel.log", self.directory)

        def knows() -> bool:
            with contextlib.suppress(redis.RedisError), redis.Redis(port=port) as client:
                return bool(client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", primary))
            return False

        self._sentinel.wait_for(knows, "the sentinel knows its primary")
        return port

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

    def _whole(self) -> bool:
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
