"""The supervisor's audit records. It has no audit log of its own: a worker writes them, and says so.

What a worker had not said to be written when it ended is given to another one. If it was killed between writing and
saying, there are two records of one thing; none would be worse.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from popproxy.app.child import Child, Stage, how_ended
from popproxy.app.unwritten import Record
from popproxy.observe.logs import get_logger
from popproxy.types import Outcome

_WAITING = 1000  # records for the next worker; more than workers can die meanwhile

log = get_logger("supervisor")


class Records:
    """Those of one supervisor. `workers` are those that could write one, the best first."""

    def __init__(self, workers: Callable[[], Sequence[Child]]) -> None:
        self._workers = workers
        self._waiting: deque[Record] = deque(maxlen=_WAITING)

    def record(self, action: str, outcome: Outcome, **fields: object) -> None:
        """Have a record written: now, or as soon as there is a worker."""
        self._waiting.append((action, outcome, fields))
        self.pass_on()

    def record_elsewhere(self, child: Child, action: str, outcome: Outcome, **fields: object) -> None:
        """Have a record written about `child`: by another worker, if there is one."""
        others = [worker for worker in self._workers() if worker is not child]
        if others:
            others[0].record(action, outcome, fields)
        else:
            self.record(action, outcome, **fields)

    def lost(self, child: Child) -> None:
        """A worker is gone, and others write what it has not.

        If it has not ended in order its sessions have no ``session_end``: one record for all.
        """
        self._waiting.extend(child.unwritten.take())
        self.pass_on()
        if child.was not in (Stage.SERVING, Stage.LEAVING) or (child.was is Stage.LEAVING and child.status == 0):
            return
        fields = {
            "event.reason": "killed" if (child.status or 0) < 0 else "crashed", "message": how_ended(child.status),
            "process.name": f"popproxy {child.name}", "process.pid": child.pid,
            "popproxy.lost.segment": child.segment, "popproxy.lost.sessions": child.sessions,
        }  # fmt: skip
        self.record("worker_lost", Outcome.FAILURE, **fields)

    def pass_on(self) -> None:
        """Give what waits to a worker, if there is one now."""
        workers = self._workers()
        while workers and self._waiting:
            action, outcome, fields = self._waiting.popleft()
            workers[0].record(action, outcome, fields)

    def hand_over(self) -> list[object]:
        """What waits, for another program in this process; good for JSON."""
        return [[action, outcome.value, fields] for action, outcome, fields in self._waiting]

    def take_over(self, told: Sequence[Sequence[Any]]) -> None:
        """Go on with what `hand_over` has told."""
        self._waiting.extend((action, Outcome(outcome), fields) for action, outcome, fields in told)

    def close(self) -> None:
        """There will be no worker any more."""
        for action, outcome, fields in self._waiting:
            log.warning("no worker to write the audit record", action=action, outcome=outcome.value, fields=fields)
        self._waiting.clear()
