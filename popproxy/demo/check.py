"""``popproxy demo --check``: plays whole sessions through the proxy and judges everything that can be seen of them."""

from __future__ import annotations

import asyncio
import sys
from typing import TextIO

from popproxy.demo.client import MismatchError
from popproxy.demo.realm import Ports
from popproxy.demo.scenarios import Scenario, scenarios
from popproxy.demo.stage import Stage, staged
from popproxy.demo.tour import ENDINGS
from popproxy.demo.witness import Witness


async def check_demo(stream: TextIO | None = None) -> int:
    """Play every scenario on free ports, print each with its dialogue and result. Returns 0, or 1 at any mismatch.

    One of ENDINGS ends it early, in order; then 128 and the signal's number are returned.
    """
    ended_by: list[int] = []
    task = asyncio.current_task()
    assert task is not None

    def end(number: int) -> None:
        ended_by.append(number)
        task.cancel()

    for number in ENDINGS:
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        return await _check(stream or sys.stdout)
    except asyncio.CancelledError:
        if not ended_by:
            raise
        return 128 + ended_by[0]


async def _check(stream: TextIO) -> int:
    failed = 0
    async with staged(Ports(0, 0, 0, 0), failure_delay="300ms") as stage:
        played = scenarios(kerberos=stage.tickets is not None)
        for number, scenario in enumerate(played, start=1):
            failed += not await asyncio.to_thread(_play, number, scenario, stage, stream)
    if stage.left_out:
        print(f"Kerberos is left out: {stage.left_out}\n", file=stream)
    total = len(played)
    print(f"{total - failed} of {total} as they should be" + (f", {failed} not" if failed else ""), file=stream)
    return 1 if failed else 0


def _play(number: int, scenario: Scenario, stage: Stage, stream: TextIO) -> bool:
    witness = Witness(stage)
    difference = ""
    try:
        scenario.play(witness)
    except (MismatchError, OSError) as error:
        difference = str(error) or type(error).__name__
    except (LookupError, ValueError) as error:
        difference = f"an answer or an audit record cannot be read: {type(error).__name__} {error}"
    print(f"{number:2}. {scenario.title}", file=stream)
    for index, client in enumerate(witness.clients, start=1):
        if len(witness.clients) > 1:
            print(f"      connection {index}", file=stream)
        print("\n".join(f"      {line}" for line in _abbreviated(client.transcript)), file=stream)
    for fact in witness.facts:
        print(f"    - {fact}", file=stream)
    print(f"    FAILED: {difference}\n" if difference else "    ok\n", file=stream, flush=True)
    return not difference


def _abbreviated(lines: list[str], head: int = 12, tail: int = 4) -> list[str]:
    if len(lines) <= head + tail + 1:
        return lines
    return [*lines[:head], f"   ... {len(lines) - head - tail} lines more ...", *lines[-tail:]]
