"""A worker as its supervisor sees it, which may be root: what it says may be what strangers have made it say."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping

import pytest

from popproxy.app.child import Child, Stage
from popproxy.app.link import Handler, send_now
from popproxy.observe import metric_merge
from tests.session.rig import until


@contextlib.contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        try:
            yield started
        finally:
            started.kill()


@contextlib.contextmanager
def child(questions: Mapping[str, Handler] | None = None) -> Iterator[tuple[Child, socket.socket]]:
    """And the worker's end of its socket pair."""
    ours, theirs = socket.socketpair()
    made = Child(1, 1, lambda _: questions or {}, lambda _: None, lambda _: None)
    made.connect(ours)
    try:
        with theirs:
            yield made, theirs
    finally:
        made.link.close()


async def test_a_worker_cannot_have_another_process_killed() -> None:
    with process() as worker, process() as victim, child() as (made, theirs):
        send_now(theirs, "born", pid=worker.pid)
        send_now(theirs, "born", pid=victim.pid)
        send_now(theirs, "status", sessions=7, reasons=[])
        await until(lambda: made.sessions == 7, "all to be heard")
        made.kill()
        assert await asyncio.to_thread(worker.wait, 30) == -signal.SIGKILL
        assert victim.poll() is None


async def test_a_worker_that_is_to_end_before_it_is_known_ends_then() -> None:
    with process() as worker, child() as (made, theirs):
        made.leave("drain", 60)
        send_now(theirs, "born", pid=worker.pid)
        assert await asyncio.to_thread(worker.wait, 30) == -signal.SIGKILL


async def test_counts_that_cannot_be_added_up_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_merge, "SERIES", 100)
    good = {"counter": {"connections": {"pop3": 3}}, "histogram": {"event_loop_lag_seconds": {"": [1, 2, 0.5]}}}
    with child() as (made, theirs):
        send_now(theirs, "status", sessions=1, reasons=[], counts=good)
        bad: list[object] = [
            7, {"counter": 7}, {"counter": {"logins": 7}}, {"counter": {"logins": {"": "3"}}},
            {"counter": {"logins": {"": -1}}}, {"sum": {"x": {"": float("nan")}}}, {"counter": {"x": {"": 10**400}}},
            {"counter": {"logins": {str(number): 1 for number in range(101)}}},
            {"histogram": {"seconds": {"": 3}}}, {"histogram": {"seconds": {"": [[]]}}}, {"sum": {"x": {"": [1]}}},
        ]  # fmt: skip
        for counts in bad:
            await asyncio.to_thread(send_now, theirs, "last", counts=counts)
        send_now(theirs, "status", sessions=2, reasons=[])
        await until(lambda: made.sessions == 2, "all to be heard")
        assert made.counts == good


async def test_what_a_worker_says_of_itself_is_bounded_and_has_nothing_that_steers_others() -> None:
    with child() as (made, theirs):
        reasons = ["draining", "x\nMAINPID=1\ud800", *["y" * 1_000_000] * 20]
        crowds = {"192.0.2.1": 7, "192.0.2.2": -7, "192.0.2.3": int("9" * 4300), "x" * 1000: 7, "192.0.2.4": True}
        await asyncio.to_thread(send_now, theirs, "status", sessions=10**400, reasons=reasons, crowds=crowds)
        await until(lambda: bool(made.reasons), "it to be heard")
        assert made.reasons[0] == "draining"
        assert "".join(made.reasons).isprintable()
        assert sum(map(len, made.reasons)) < 5000
        assert made.sessions <= 10**9
        assert made.crowds == {"192.0.2.1": 7, "192.0.2.4": 1}


async def test_a_worker_that_is_to_leave_cannot_say_that_it_has_only_begun() -> None:
    with process() as worker, child() as (made, theirs):
        send_now(theirs, "born", pid=worker.pid)
        send_now(theirs, "ready", routes={"who": {}}, segment="first")
        await until(lambda: made.stage is Stage.READY, "it to be ready")
        made.accept()
        made.leave("retire", 0)
        send_now(theirs, "ready", routes={}, segment="second")
        send_now(theirs, "status", sessions="all", reasons=7)
        send_now(theirs, "status", sessions=3, reasons=["why"])
        await until(lambda: made.sessions == 3, "all to be heard")
        assert (made.stage, made.segment, made.routes) == (Stage.LEAVING, "first", {"who": {}})
        assert made.reasons == ["why"]
