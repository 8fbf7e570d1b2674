"""An AP-REQ in the framing of GSSAPI, and what is kept of a client until its login is over."""

from __future__ import annotations

import pytest

from popproxy.kerberos.delegation_failure import (
    DelegationFailed,
    Obstacle,
    kdc_failed,
    number_of,
    own_failed,
    user_failed,
)
from popproxy.kerberos.evidence import Evidence, gss_framed
from tests.peers.krb5_client import KRB5_OID


def unframed(token: bytes) -> bytes:
    """The AP-REQ inside (RFC 2743 section 3.1, RFC 4121 section 4.1), by the rules of DER."""
    assert token[0] == 0x60
    if token[1] < 0x80:
        length, rest = token[1], token[2:]
    else:
        count = token[1] & 0x7F
        length, rest = int.from_bytes(token[2 : 2 + count], "big"), token[2 + count :]
        assert length >= 0x80, "the short form would do"
        assert token[2] != 0, "no leading zero"
    assert len(rest) == length
    assert rest.startswith(KRB5_OID + b"\x01\x00")
    return rest[len(KRB5_OID) + 2 :]


@pytest.mark.parametrize("length", [0, 1, 0x72, 0x73, 0x74, 0xF2, 0xF3, 0xF4, 600, 0xFFF2, 0xFFF3, 0xFFF4, 65_536])
def test_framed(length: int) -> None:
    ap_req = bytes(number % 251 for number in range(length))
    assert unframed(gss_framed(ap_req)) == ap_req


def test_evidence_is_gone_when_the_login_is_over_and_never_shown() -> None:
    evidence = Evidence(b"canary-token", "pop/a@A")
    assert evidence.token == b"canary-token"
    assert "canary" not in repr(evidence)
    evidence.clear()
    assert evidence.token is None


@pytest.mark.parametrize(
    ("min_code", "number"),
    [(2529638925, 13), (2529638919, 7), (2529639068, 156), (39756033, 39756033), (2, -2), (0, 0)],
)
def test_numbers_as_in_rfc_4120(min_code: int, number: int) -> None:
    assert number_of(min_code) == number


@pytest.mark.parametrize(
    ("failure", "obstacle", "temporary"),
    [
        (user_failed(6, "kerberos-transition", "alice@A"), Obstacle.NOT_DELEGATABLE, False),
        (user_failed(18, "kerberos-transition", "alice@A"), Obstacle.NOT_DELEGATABLE, False),
        (user_failed(156, "kerberos-transition", "alice@A"), Obstacle.KDC, True),
        (user_failed(4242, "kerberos-transition", "alice@A"), Obstacle.KDC, True),
        (own_failed(24, "kerberos-service", "pop/a@A"), Obstacle.OWN_CREDENTIAL, False),
        (own_failed(39756033, "kerberos-service", "pop/a@A"), Obstacle.OWN_CREDENTIAL, False),
        (own_failed(156, "kerberos-service", "pop/a@A"), Obstacle.KDC, True),
        (kdc_failed(37, "kerberos-service"), Obstacle.KDC, True),
    ],
)
def test_what_is_in_the_way(failure: DelegationFailed, obstacle: Obstacle, temporary: bool) -> None:
    """What is not known to be final may pass: it is never the user's fault, nor for ever."""
    assert failure.obstacle is obstacle
    assert failure.temporary == temporary
    assert str(failure)
