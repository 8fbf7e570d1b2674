"""What supervisor and workers say to each other."""

from __future__ import annotations

import asyncio
import os
import socket

from popproxy.app.link import Link, UnderWay, receive_now


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
