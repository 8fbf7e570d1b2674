"""What supervisor and workers say to each other."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import pytest

from popproxy.admin.frames import CommandFailed, Reason, encode
from popproxy.app import link as links
from popproxy.app.link import Link, UnderWay, receive_now
from tests.peers.process import limit_with
from tests.session.rig import until


async def test_descriptors_come_with_their_message_however_much_is_on_its_way_before() -> None:
    ours, theirs = socket.socketpair()
    first = Link(ours, questions={}, tidings={}, lost=lambda: None)
    read, write = os.pipe()
    configuration = "x" * 3_000_000
    first.tell("start", raw=configuration)
    first.tell("go", [read])
    os.close(read)
    first.tell("accept")
    with theirs:
        what, fields, descriptors = await asyncio.to_thread(receive_now, theirs)
        assert (what, fields["raw"] == configuration, descriptors) == ("start", True, [])
        what, _, (passed,) = await asyncio.to_thread(receive_now, theirs)
        assert what == "go"
        assert (await asyncio.to_thread(receive_now, theirs))[0] == "accept"
    os.close(write)
    assert os.read(passed, 1) == b""  # the pipe's end, and nobody else has it
    os.close(passed)
    first.close()


async def test_where_there_is_no_room_for_all_descriptors_no_copy_is_left() -> None:
    ours, theirs = socket.socketpair()
    first = Link(ours, questions={}, tidings={}, lost=lambda: None)
    first.tell("start", raw="x" * 3_000_000)
    before, limits = taken(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with(2, before), limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            first.tell("go", [theirs.fileno()] * 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert taken() == before
    first.close()
    theirs.close()


def taken() -> set[int]:
    """The descriptors of this process, without that of the directory which tells them."""
    return {number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")}


def link(sock: socket.socket, under_way: UnderWay | None = None) -> Link:
    async def double(number: int) -> object:
        return 2 * number

    def lost() -> None:
        raise AssertionError("the link is not lost")

    return Link(sock, questions={"double": double}, tidings={}, lost=lost, under_way=under_way or UnderWay())


async def test_another_link_goes_on_in_the_middle_of_messages() -> None:
    ours, theirs = socket.socketpair()
    first, other = link(ours), link(theirs)
    assert await first.ask("double", 5, number=1) == 2
    other.pause()  # so that the socket does not take all that is said
    first.tell("long", text="x" * 3_000_000)
    late = asyncio.ensure_future(first.ask("double", 60, number=20))
    await asyncio.sleep(0)
    first.pause()
    under_way = first.under_way
    assert len(under_way.unsent) > 1_000_000
    second = link(ours, under_way)
    other.resume()
    assert await second.ask("double", 60, number=4) == 8, "the answer to what the first has asked is not taken for it"
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    for one in (other, second):
        one.close()


async def test_what_comes_during_a_pause_is_heard_afterwards() -> None:
    ours, theirs = socket.socketpair()
    one, other = link(ours), link(theirs)
    one.pause()
    asked = asyncio.ensure_future(other.ask("double", 60, number=5))
    await asyncio.sleep(0.02)
    assert not asked.done()
    assert not one.busy
    one.resume()
    assert await asked == 10
    one.close()
    other.close()


@pytest.mark.parametrize("failed", [{"reason": "of_another_version", "text": "why"}, {"text": "why"}, "why"])
async def test_an_answer_that_another_version_gives_for_another_reason_is_one(failed: object) -> None:
    ours, theirs = socket.socketpair()
    one = link(ours)
    asked = asyncio.ensure_future(one.ask("what", 60))
    with theirs:
        await asyncio.to_thread(receive_now, theirs)
        theirs.sendall(encode({"answer": 1, "failed": failed}))
        with pytest.raises(CommandFailed, match="why") as caught:
            await asked
    assert caught.value.reason is Reason.INTERNAL
    one.close()


@pytest.mark.parametrize("message", [{"answer": {}}, {"ask": "x"}, {"ask": []}, {"ask": float("inf")}])
async def test_what_is_no_message_ends_the_link(message: object) -> None:
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()
    one = Link(ours, questions={}, tidings={}, lost=lost.set)
    with theirs:
        theirs.sendall(encode(message))
        await asyncio.wait_for(lost.wait(), 20)
    one.close()


async def test_what_a_hearer_does_not_understand_is_left_out() -> None:
    ours, theirs = socket.socketpair()
    heard: list[int] = []
    one = Link(ours, questions={}, tidings={"count": lambda number: heard.append(int(number))}, lost=lambda: None)
    with theirs:
        for fields in ({"number": 1}, {"number": "many"}, {"amount": 2}, ["number"], {"number": 3}):
            theirs.sendall(encode({"tell": "count", "with": fields}))
        await until(lambda: heard[-1:] == [3], "the last message")
    assert heard == [1, 3]
    one.close()


async def test_an_end_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_ANSWER", 1 << 20)
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()
    one = Link(ours, questions={}, tidings={}, lost=lost.set)
    with theirs:
        for _ in range(20):
            one.tell("news", text="x" * 200_000)
        await asyncio.wait_for(lost.wait(), 20)
    assert one.under_way.unsent == b""
    one.close()


async def test_questions_are_bounded_and_so_are_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_ANSWER", 1 << 20)
    ours, theirs = socket.socketpair()
    goes_on, all_heard, begun = asyncio.Event(), asyncio.Event(), 0

    async def wait(size: int) -> object:
        nonlocal begun
        begun += 1
        await goes_on.wait()
        return "x" * size

    asking = link(ours)
    answering = Link(theirs, questions={"wait": wait}, tidings={"all": all_heard.set}, lost=lambda: None)
    asked = [asyncio.ensure_future(asking.ask("wait", 60, size=number)) for number in (2 << 20, *[1] * 300)]
    await asyncio.sleep(0)
    asking.tell("all")
    await asyncio.wait_for(all_heard.wait(), 20)
    await until(lambda: begun == 256, "as many as are answered at once")
    goes_on.set()
    with pytest.raises(CommandFailed, match="octets, and 1048576 are taken; ask for less"):
        await asked[0]
    assert await asking.ask("wait", 60, size=2) == "xx"
    assert begun == 257
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    for end in (asking, answering):
        end.close()
