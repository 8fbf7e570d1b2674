"""Slow clients and slow replies, by a clock of our own."""

from __future__ import annotations

from popproxy.net.pace import SLOWEST, Pace, often


def test_a_client_is_stuck_once_it_has_read_nothing_for_so_long() -> None:
    pace = Pace()
    pace.falls_behind(5000, 100.0)
    assert not pace.stuck(5000, 159.9, 60)
    assert not pace.stuck(4999, 160.0, 60)  # an octet
    assert not pace.stuck(4999, 219.9, 60)
    assert pace.stuck(4999, 220.0, 60)
    pace.keeps_up()
    assert not pace.stuck(4999, 1000.0, 60)  # seen behind for the first time


def test_a_reply_has_its_time_of_grace_and_then_must_get_on() -> None:
    pace = Pace()
    assert not pace.too_slow(70, 100.0, 60)
    assert not pace.too_slow(70, 160.0, 60)
    assert pace.too_slow(70, 160.1, 60)
    assert not pace.too_slow(70 + int(SLOWEST * 1000) + 1, 1160.0, 60)
    pace.between_replies()
    assert not pace.too_slow(70, 5000.0, 60)


def test_who_does_not_keep_up_is_looked_at_often_but_not_all_the_time() -> None:
    assert [often(stall) for stall in (0.1, 5, 300)] == [0.1, 0.25, 5.0]
