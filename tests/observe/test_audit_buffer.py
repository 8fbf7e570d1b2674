"""Records on their way to a sink."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from popproxy.observe.audit_buffer import RecordBuffer


def test_time_stamps_are_utc_with_microseconds_and_never_go_back_within_a_second() -> None:
    buffer = RecordBuffer(1 << 20)
    before = datetime.now(UTC)
    for _ in range(1000):
        assert buffer.append('"event.action":"test"')
    after = datetime.now(UTC)
    written = bytearray()

    def write(data: memoryview) -> int:
        written.extend(data)
        return len(data)

    buffer.drain(write)
    stamps = [json.loads(line)["@timestamp"] for line in written.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp) for stamp in stamps)
    times = [datetime.fromisoformat(stamp) for stamp in stamps]
    assert len(times) == 1000
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= after
