"""The chain of records: numbers, dates, hashes, signatures."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from popproxy.observe.audit_chain import ORIGIN, Chain, Head, heads, read_link
from popproxy.observe.audit_keys import SigningKey, generate, read_public
from popproxy.types import Secret

FIELDS = '"event.action":"dele","user.name":"a"'


def test_time_stamps_are_utc_with_microseconds_and_never_go_back_within_a_second() -> None:
    chain = Chain()
    before = datetime.now(UTC)
    links = [read_link(chain.seal(FIELDS)) for _ in range(1000)]
    after = datetime.now(UTC)
    stamps = [link.time for link in links if link is not None]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp) for stamp in stamps)
    times = [datetime.fromisoformat(stamp) for stamp in stamps]
    assert len(times) == 1000
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= after


def test_each_record_names_the_one_before_by_the_hash_that_sha256sum_prints() -> None:
    chain = Chain()
    lines = [chain.seal(FIELDS) for _ in range(3)]
    links = [link for line in lines if (link := read_link(line)) is not None]
    assert [link.sequence for link in links] == [1, 2, 3]
    assert [link.previous for link in links] == [ORIGIN, *(hashlib.sha256(line).hexdigest() for line in lines[:2])]
    assert {link.segment for link in links} == {chain.segment}
    assert {link.key for link in links} == {None}


def test_a_signature_is_over_all_that_stands_before_it(tmp_path: Path) -> None:
    key = SigningKey(Secret(generate()))
    public = tmp_path / "key.pub"
    public.write_bytes(key.public_pem())
    keys = read_public([public])
    chain = Chain(key)
    chain.seal(FIELDS)
    link = read_link(chain.seal_signed(FIELDS))
    assert link is not None
    assert link.key == key.key_id
    assert link.signed.endswith(f'"chain.previous":"{link.previous}","chain.key":"{key.key_id}"'.encode())
    assert keys.good(key.key_id, link.signature, link.signed)
    assert not keys.good(key.key_id, link.signature, link.signed.replace(b"dele", b"retr"))
    assert (chain.sequence, chain.signed) == (2, 2)
    assert key.subkey("a") != key.subkey("b")


@pytest.mark.parametrize("cut", [b"", b"{}\n", b'{"@timestamp":"x"}\n', b"\n", b"\x00" * 300 + b"\n"])
def test_what_is_no_record_is_none(cut: bytes) -> None:
    assert read_link(cut) is None


def test_every_single_octet_of_a_record_is_under_its_hash() -> None:
    line = Chain(SigningKey(Secret(generate()))).seal_signed(FIELDS)
    link = read_link(line)
    for place in range(len(line)):
        changed = bytearray(line)
        changed[place] ^= 1
        other = read_link(bytes(changed))
        assert other is None or other.hash != getattr(link, "hash", "")


def test_the_latest_records_of_others_are_found_at_the_end_of_a_file() -> None:
    one, two, own = Chain(), Chain(), Chain()
    lines = [one.seal(FIELDS), two.seal(FIELDS), own.seal(FIELDS), one.seal(FIELDS), two.seal(FIELDS), own.seal(FIELDS)]
    tail = b"".join(lines)
    expected = [Head(chain.segment, 2, hashlib.sha256(lines[n]).hexdigest()) for chain, n in ((two, 4), (one, 3))]
    assert heads(tail, own.segment) == expected
    for cut in range(len(lines[0]) + len(lines[1])):  # the tail begins somewhere in a record
        assert heads(tail[cut:], own.segment) == expected
    assert heads(tail + b'{"@timestamp":"2026', own.segment) == expected
    assert heads(b"", own.segment) == []
