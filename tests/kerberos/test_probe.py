"""What a real KDC says of a keytab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.kerberos.probe import KdcAnswer, ProbeRefusal, ProbeRefused, ask
from tests.peers.kdc import REALM, Realm

MINE = f"pop/probed.test@{REALM}"


@pytest.fixture
def key(kdc: Realm) -> Iterator[Path]:
    """Of a service of its own, which nobody else's test relies on."""
    kdc.service(MINE)
    yield kdc.keytab(MINE)
    kdc.kadmin("delprinc", MINE)


def refusal(keytab: Path, client: str = MINE, service: str = MINE) -> ProbeRefusal:
    with pytest.raises(ProbeRefused) as caught:
        ask(keytab, client, service)
    return caught.value.reason


def test_version_kind_and_clock(kdc: Realm, key: Path) -> None:
    assert ask(key, MINE, MINE) == KdcAnswer(1, "aes256-cts-hmac-sha1-96", 0)
    kdc.rotate(MINE)
    kdc.add_to_keytab(key, MINE)
    assert ask(key, MINE, MINE).version == 2


@pytest.mark.parametrize("attribute", ["+requires_preauth", "-requires_preauth"])
def test_keytab_that_is_out_of_date(kdc: Realm, key: Path, attribute: str) -> None:
    kdc.kadmin("modprinc", attribute, MINE)
    kdc.rotate(MINE)
    assert refusal(key) is ProbeRefusal.KEY


def test_names_that_the_kdc_does_not_know(kdc: Realm, key: Path) -> None:
    assert refusal(key, service=f"pop/nowhere.test@{REALM}") is ProbeRefusal.NO_SERVICE
    kdc.kadmin("delprinc", MINE)
    try:
        assert refusal(key) is ProbeRefusal.NO_CLIENT
    finally:
        kdc.service(MINE)


def test_locked_account(kdc: Realm, key: Path) -> None:
    kdc.kadmin("modprinc", "-allow_tix", MINE)
    assert refusal(key) is ProbeRefusal.LOCKED


def test_no_kdc(kdc: Realm, key: Path) -> None:
    kdc.stop()
    try:
        assert refusal(key) is ProbeRefusal.SILENT
    finally:
        kdc.start()
