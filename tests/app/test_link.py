"""What supervisor and workers say to each other."""

from __future__ import annotations

import asyncio
import os
import socket

from popproxy.app.link import Link, receive_now


async def test_descriptors_come_with_their_message_however_much_is_on_its_way_before() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, questions={}, tidings={}, lost=lambda: None)
    read, write = os.pipe()
    configuration = "x" * 3_000_000
    link.tell("start", raw=configuration)
    link.tell("go", [read])
    os.close(read)
    link.tell("accept")
    with theirs:
        what, fields, descriptors = await asyncio.to_thread(receive_now, theirs)
        assert (what, fields["raw"] == configuration, descriptors) == ("start", True, [])
        what, _, (passed,) = await asyncio.to_thread(receive_now, theirs)
        assert what == "go"
        assert (await asyncio.to_thread(receive_now, theirs))[0] == "accept"
    os.close(write)
    assert os.read(passed, 1) == b""  # the pipe's end, and nobody else has it
    os.close(passed)
    link.close()
