"""What popproxy reads in a keytab is what is in it, and no octets make it fall over."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.kerberos.keytab import Entry, NotAKeytab, belongs, entries, parse, serves, usable
from tests.peers.kdc import REALM, Realm
from tests.peers.keytabs import RC4, keytab, record


def test_entries_in_file_order() -> None:
    octets = keytab(record(), record("host/mail.a.test@A.TEST", 4, RC4))
    assert parse(octets) == [Entry("pop/mail.a.test@A.TEST", 3, 18), Entry("host/mail.a.test@A.TEST", 4, 23)]
    assert [entry.weak for entry in parse(octets)] == [False, True]
    assert [entry.encryption for entry in parse(octets)] == ["aes256-cts-hmac-sha1-96", "arcfour-hmac"]


def test_versions_above_255() -> None:
    assert parse(keytab(record(version=300, more=struct.pack(">I", 300))))[0].version == 300
    assert parse(keytab(record(version=7, more=struct.pack(">I", 0))))[0].version == 7


def test_holes_are_skipped_and_nothing_follows_the_end() -> None:
    hole = struct.pack(">i", -10) + bytes(10)
    assert len(parse(keytab(hole, record(), hole, record()))) == 2
    assert len(parse(keytab(record(), bytes(4), record()))) == 1


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "empty"),
        (b"PK\x03\x04", "does not begin like one"),
        (b"\x05\x01" + record(), "does not begin like one"),
        (keytab(record())[:-1], "cut short"),
        (keytab(struct.pack(">i", 3) + b"\0\x01\xff"), "damaged"),
        (keytab() + bytes(1 << 20), "too large"),
    ],
)
def test_what_is_no_keytab(octets: bytes, why: str) -> None:
    with pytest.raises(NotAKeytab, match=why):
        parse(octets)


@given(st.binary(max_size=200))
def test_any_octets_are_a_keytab_or_not(octets: bytes) -> None:
    for candidate in (octets, b"\x05\x02" + octets, keytab(record()) + octets):
        with contextlib.suppress(NotAKeytab):
            assert "SECR" not in repr(parse(candidate))


def test_names_with_and_without_realm() -> None:
    entry = Entry("pop/mail.a.test@A.TEST", 1, 18)
    assert [belongs(entry, name) for name in (entry.principal, "pop/mail.a.test")] == [True, True]
    others = ("pop/mail.a.test@B.TEST", "pop/mail", "mail.a.test", "pop/Mail.a.test")
    assert not any(belongs(entry, name) for name in others)
    assert serves(entry)
    assert not serves(Entry("popular/mail.a.test@A.TEST", 1, 18))


def test_usable_as_long_as_there_is_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keytab"
    assert not usable(path, ["pop/mail.a.test"])
    path.write_bytes(keytab(record()))
    assert usable(path, ["pop/other.a.test", "pop/mail.a.test"])
    assert not usable(path, ["pop/other.a.test"])
    path.write_bytes(b"damaged")
    assert not usable(path, ["pop/mail.a.test"])


def test_a_real_keytab(kdc: Realm) -> None:
    service = "pop/two-versions.test"  # of its own: others have tickets for the keys of theirs
    kdc.service(service)
    path = kdc.keytab("ftp/localhost", service)
    kdc.rotate(service)
    kdc.add_to_keytab(path, service)
    found = entries(path)
    assert [entry.principal for entry in found] == [f"{name}@{REALM}" for name in ("ftp/localhost", service, service)]
    assert found[2].version == found[1].version + 1
    assert {entry.encryption for entry in found} == {"aes256-cts-hmac-sha1-96"}
