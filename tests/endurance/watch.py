"""What a running popproxy uses, in all its processes; and a healthy client that looks whether it still serves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.play import Door
from tests.peers.canaries import canary
from tests.session.rig import Peer


def family(pid: int) -> list[int]:
    """A process and all that came of it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory(pid: int) -> float:
    """MiB that its processes have written to. Pages of program files come and go with what others run."""
    kilobytes = 0
    for process in family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    return kilobytes / 1024


def descriptors(pid: int) -> int:
    """How many its processes have open."""
    count = 0
    for process in family(pid):
        with contextlib.suppress(OSError):
            count += sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    return count


@dataclass
class Health:
    """Whole sessions of a client that does nothing wrong, so many a second."""

    door: Door
    a_second: float
    took: list[float] = field(default_factory=list)
    """Seconds from connecting to the answer to PASS."""
    failed: list[str] = field(default_factory=list)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            task = asyncio.get_running_loop().create_task(self._one())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.sleep(1 / self.a_second)

    async def finish(self) -> None:
        """Wait for those under way."""
        await asyncio.gather(*self._under_way)

    async def _one(self) -> None:
        started = time.monotonic()
        client: Peer | None = None
        try:
            client = await self.door.connect("127.0.0.1")
            for line in ("", "USER healthy", f"PASS {canary()}"):
                reply = await (client.command(line) if line else client.line())
                assert reply.startswith(b"+OK"), reply
            self.took.append(time.monotonic() - started)
            for line in ("DELE 2", "QUIT"):
                reply = await client.command(line)
                assert reply.startswith(b"+OK"), reply
        except (AssertionError, OSError, TimeoutError) as error:
            self.failed.append(repr(error))
        finally:
            if client is not None:
                client.close()

    def percentile(self, share: float) -> float:
        """Of the seconds to the login."""
        took = sorted(self.took)
        return took[min(len(took) - 1, int(len(took) * share))] if took else float("inf")


@contextlib.asynccontextmanager
async def beside(health: Health) -> AsyncIterator[Health]:
    """While the block runs."""
    running = asyncio.get_running_loop().create_task(health.run())
    try:
        yield health
    finally:
        running.cancel()
        await health.finish()
