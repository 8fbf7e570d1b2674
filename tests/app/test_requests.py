"""What a worker may have carried out by all, and what is written of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from popproxy.admin.commands import Commands, Role
from popproxy.admin.frames import MAX_REQUEST, CommandFailed, Reason
from popproxy.admin.routing import Router
from popproxy.admin.watches import MOST, add_watches
from popproxy.app.child import Child
from popproxy.app.requests import Requests
from popproxy.app.strangers import AGE, Strangers
from popproxy.session.tracing import Tracing
from popproxy.types import Outcome


class Carrier:
    """A worker that carries everything out."""

    name = "1.1"

    async def command(self, name: str, arguments: Mapping[str, object], seconds: float) -> Any:
        return {"done": name}


class Rig:
    def __init__(self) -> None:
        own, workers = Commands(), Commands()
        for name in ("reload", "upgrade", "drain"):
            own.add(name, self._forbidden)
        workers.add("kick", self._nothing)
        workers.add("who", self._nothing, Role.VIEWER)
        workers.add("trace take", self._nothing, hidden=True)
        router = Router(own, lambda: [Carrier()])
        router.routes = workers.routes()
        self.records: list[tuple[object, ...]] = []
        self.child = Child(2, 1, lambda _: {}, lambda _: None, lambda _: None)
        self._requests = Requests(own, router, self._write)

    async def ask(self, name: object, **arguments: object) -> object:
        return await self._requests.execute(self.child, name, arguments)

    def _write(self, child: Child, action: str, outcome: Outcome, **fields: object) -> None:
        assert (child, action) == (self.child, "worker_command")
        assert fields["process.name"] == "popproxy 1.2"
        self.records.append(
            (fields["popproxy.command"], fields["popproxy.arguments"], outcome.value, fields.get("event.reason"))
        )

    async def _forbidden(self) -> object:
        raise AssertionError("carried out")

    async def _nothing(self) -> object:
        return {}


@pytest.mark.parametrize("name", ["reload", "upgrade", "drain"])
async def test_the_supervisors_own_commands_are_not_for_workers(name: str) -> None:
    rig = Rig()
    with pytest.raises(CommandFailed, match="is no command for a worker to give") as failed:
        await rig.ask(name)
    assert failed.value.reason is Reason.DENIED
    assert rig.records == [(name, {}, "failure", "denied")]


async def test_what_changes_or_overhears_something_is_on_record() -> None:
    rig = Rig()
    assert await rig.ask("who") == {"done": "who"}
    assert rig.records == []
    for user in ("alice", "bob", "bob"):
        await rig.ask("kick", user=user)
    for key in ("a", "a", "a", "b"):
        await rig.ask("trace take", user="alice", key=key)
    assert rig.records == [
        ("kick", {"user": "alice"}, "success", None), *[("kick", {"user": "bob"}, "success", None)] * 2,
        *[("trace take", {"user": "alice", "key": key}, "success", None) for key in ("a", "b")],
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), [(["kick"], {}), ("reboot", {}), ("kick", {"user": "x" * MAX_REQUEST})])
async def test_what_is_none_or_too_large_is_neither_carried_out_nor_written(
    name: object, arguments: dict[str, object]
) -> None:
    rig = Rig()
    with pytest.raises(CommandFailed):
        await rig.ask(name, **arguments)
    assert rig.records == []


async def test_traces_that_a_worker_has_others_keep_are_bounded() -> None:
    commands, tracing = Commands(), Tracing()
    add_watches(commands, [], tracing, str)
    for number in range(MOST):
        await commands.execute("trace take", {"user": "alice", "key": str(number)})
    with pytest.raises(CommandFailed, match="there are 100 traces already"):
        await commands.execute("trace take", {"user": "bob", "key": "one more"})
    for number in range(MOST):
        await commands.execute("trace drop", {"key": str(number)})
    assert not tracing.active


def test_how_a_process_has_ended_is_not_said_of_a_later_one_with_its_number() -> None:
    now = 1000.0
    strangers = Strangers(lambda: now)
    strangers.ended(7, -9)
    strangers.ended(8, 0)
    later = Strangers(lambda: now)
    later.take_over(strangers.hand_over())
    assert [strangers.status_of(7), later.status_of(8), later.status_of(8)] == [-9, 0, None]
    now += AGE
    assert strangers.status_of(8) is None
