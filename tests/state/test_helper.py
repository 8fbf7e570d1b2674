"""The helper process: answers, deadlines that really end the work, deaths on every level, rights given up."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from popproxy.errors import Unavailable
from popproxy.state.helper import Helper, start_helper
from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.long

MODULE = "tests.state.helper_worker"
Make = Callable[..., Helper]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    made: list[Helper] = []

    def start(
        *, workers: int = 2, queue_limit: int = 10, deadline: float = 30, user: str | None = None, **settings: Any
    ) -> Helper:
        started = start_helper(MODULE, settings, workers=workers, user=user)
        helper = Helper(
            "test", started, asyncio.get_running_loop(), workers=workers, queue_limit=queue_limit, deadline=deadline
        )
        made.append(helper)
        return helper

    yield start
    for helper in made:
        helper.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def gone(*pids: int) -> None:
    async with asyncio.timeout(60):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


async def refused(question: Any) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        await question
    return caught.value


async def test_an_answer(make: Make) -> None:
    answer = await make(colour="blue").ask({"n": 1})
    assert answer["echo"] == {"n": 1}
    assert answer["settings"] == {"colour": "blue"}
    assert 0 < answer["seconds"] <= 30


async def test_one_worker_answers_one_question_after_another(make: Make) -> None:
    helper = make()
    assert len({(await helper.ask({}))["pid"] for _ in range(5)}) == 1


async def test_as_many_at_a_time_as_there_are_workers_and_the_rest_in_turn(make: Make, tmp_path: Path) -> None:
    helper = make(workers=3)
    flag = tmp_path / "flag"
    tasks = [asyncio.ensure_future(helper.ask({"wait_for": str(flag)})) for _ in range(7)]
    await asyncio.sleep(0)
    assert (helper.busy, helper.queued) == (3, 4)
    flag.touch()
    answers = await asyncio.gather(*tasks)
    assert len({answer["pid"] for answer in answers}) <= 3
    assert (helper.busy, helper.queued) == (0, 0)


async def test_a_full_queue_is_told_at_once(make: Make, tmp_path: Path) -> None:
    helper = make(workers=1, queue_limit=1)
    flag = tmp_path / "flag"
    tasks = [asyncio.ensure_future(helper.ask({"wait_for": str(flag)})) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await refused(helper.ask({}))).reason == "queue_full"
    flag.touch()
    await asyncio.gather(*tasks)


async def test_the_late_one_is_killed_and_others_are_not_disturbed(make: Make, tmp_path: Path) -> None:
    helper = make(workers=2, deadline=5)
    flag = tmp_path / "flag"
    first = asyncio.ensure_future(helper.ask({"wait_for": str(flag)}))
    await asyncio.sleep(0)
    other = await helper.ask({})
    assert (await refused(first)).reason == "deadline"
    assert helper.abandoned == 1
    assert (await helper.ask({}))["pid"] == other["pid"]
    children = Path(f"/proc/{other['parent']}/task/{other['parent']}/children")
    async with asyncio.timeout(60):  # the dispatcher reaps what the kernel could not yet give back a second later
        while children.read_text().split() != [str(other["pid"])]:
            await asyncio.sleep(0.05)


async def test_waiting_counts_towards_the_deadline(make: Make) -> None:
    helper = make(workers=1, deadline=3)
    answers = await asyncio.gather(*(refused(helper.ask({"sleep": 60})) for _ in range(3)))
    assert {answer.reason for answer in answers} == {"deadline"}
    assert (await helper.ask({}))["echo"] == {}


async def test_a_crash_is_unavailable_and_the_next_question_is_answered(make: Make) -> None:
    helper = make(workers=1)
    assert (await refused(helper.ask({"crash": True}))).reason == "died"
    assert (await helper.ask({"n": 2}))["echo"] == {"n": 2}


async def test_an_exception_is_told_by_its_type_alone(make: Make) -> None:
    error = await refused(make().ask({"raise": "hunter2"}))
    assert error.reason == "error"
    assert "ValueError" in str(error)
    assert "hunter2" not in str(error)


async def test_what_is_too_long(make: Make) -> None:
    helper = make(workers=1)
    assert (await refused(helper.ask({"text": "x" * 200_000}))).reason == "error"
    assert "answer_too_long" in str(await refused(helper.ask({"octets": 200_000})))
    assert len((await helper.ask({"octets": 100_000}))["text"]) == 100_000


async def test_a_caller_that_goes_away_frees_the_worker_when_it_is_done(make: Make, tmp_path: Path) -> None:
    helper = make(workers=1)
    flag = tmp_path / "flag"
    task = asyncio.ensure_future(helper.ask({"wait_for": str(flag)}))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert (helper.busy, helper.abandoned) == (1, 1)
    waiting = asyncio.ensure_future(helper.ask({}))
    also_waiting = asyncio.ensure_future(helper.ask({}))
    await asyncio.sleep(0)
    waiting.cancel()
    flag.touch()
    assert (await also_waiting)["echo"] == {}
    assert helper.busy == 0


async def test_a_dead_dispatcher_is_replaced(make: Make) -> None:
    helper = make(workers=1, deadline=5)
    answer = await helper.ask({})
    os.kill(answer["parent"], signal.SIGKILL)
    await gone(answer["pid"])  # a worker does not outlive it
    again = await helper.ask({})
    assert again["parent"] != answer["parent"]


async def test_a_dead_keeper_takes_nothing_along(make: Make) -> None:
    helper = make()
    answer = await helper.ask({})
    keeper = helper._started.process.pid
    os.kill(keeper, signal.SIGKILL)
    await gone(keeper)
    assert (await helper.ask({}))["pid"] == answer["pid"]
    dispatcher = answer["parent"]
    os.kill(dispatcher, signal.SIGKILL)
    await gone(dispatcher)
    assert (await refused(helper.ask({}))).reason == "closed"


async def test_signals_for_the_whole_group_do_not_end_it(make: Make) -> None:
    helper = make()
    answer = await helper.ask({})
    for pid in (helper._started.process.pid, answer["parent"], answer["pid"]):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    assert (await helper.ask({}))["pid"] == answer["pid"]


async def test_closing_ends_every_process_and_answers_everybody(make: Make) -> None:
    helper = make(workers=1)
    answer = await helper.ask({})
    tasks = [asyncio.ensure_future(refused(helper.ask({"sleep": 60}))) for _ in range(2)]
    await asyncio.sleep(0)
    helper.close()
    assert [error.reason for error in await asyncio.gather(*tasks)] == ["closed", "closed"]
    await gone(helper._started.process.pid, answer["parent"], answer["pid"])
    assert (await refused(helper.ask({}))).reason == "closed"


async def test_a_preparation_that_fails_says_why(make: Make) -> None:
    with pytest.raises(Unavailable, match="no such library"):
        make(refuse="no such library")


async def test_secrets_in_settings_stand_in_no_process_list(make: Make) -> None:
    helper = make(password="hunter2")
    pid = (await helper.ask({}))["pid"]
    for file in ("cmdline", "environ"):
        assert b"hunter2" not in Path(f"/proc/{pid}/{file}").read_bytes()


@pytest.mark.real
async def test_rights_are_given_up_after_the_preparation(make: Make) -> None:
    assert os.geteuid() == 0, "run as root: sudo make test"
    answer = await make(user="nobody").ask({})
    assert answer["prepared_as"] == 0
    assert answer["uid"] == pwd.getpwnam("nobody").pw_uid
