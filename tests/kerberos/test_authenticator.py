"""What stands for an AP-REQ when it is shown again: the same whatever is changed around it, nothing if it is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.kerberos.authenticator import authenticator_tag

CIPHERTEXT = bytes(range(200))


def der(tag: int, *content: bytes) -> bytes:
    """An element with the shortest length."""
    whole = b"".join(content)
    size = len(whole)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag,)) + (bytes((size,)) if size < 0x80 else bytes((0x80 | len(octets),)) + octets) + whole


def ap_req(*, ciphertext: bytes = CIPHERTEXT, kvno: bool = False, options: int = 0, after: bytes = b"") -> bytes:
    number = der(0xA1, der(2, b"\1")) if kvno else b""
    encrypted = der(0x30, der(0xA0, der(2, b"\x12")), number, der(0xA2, der(4, ciphertext)))
    fields = (
        der(0xA0, der(2, b"\5")), der(0xA1, der(2, b"\x0e")), der(0xA2, der(3, bytes((0, options, 0, 0, 0)))),
        der(0xA3, der(0x61, b"a ticket")), der(0xA4, encrypted), after,
    )  # fmt: skip
    return der(0x6E, der(0x30, *fields))


def framed(token: bytes, oid: str = "2a864886f712010202") -> bytes:
    return der(0x60, der(6, bytes.fromhex(oid)), b"\1\0", token)


def test_it_is_the_end_of_the_ciphertext_however_it_is_wrapped() -> None:
    for token in (ap_req(), ap_req(kvno=True), ap_req(options=0x20), framed(ap_req())):
        assert authenticator_tag(token) == CIPHERTEXT[-16:]


@pytest.mark.parametrize(
    "token",
    [
        b"", b"\x6e", b"\x6e\x80", ap_req() + b"\0", ap_req(after=der(0xA5, b"")), ap_req(ciphertext=b"short"),
        framed(ap_req(), "2a864886f712010203"), framed(ap_req()) + b"\0", framed(ap_req() + b"\0"),
        b"\x6e\x84\0" + ap_req()[2:], ap_req()[:-1],
    ],
)  # fmt: skip
def test_what_is_no_such_thing_has_none(token: bytes) -> None:
    assert authenticator_tag(token) is None


@given(st.integers(0, len(framed(ap_req())) - 1), st.integers(0, 255))
def test_no_change_outside_of_the_ciphertext_gives_it_another(place: int, octet: int) -> None:
    token = bytearray(framed(ap_req()))
    token[place] = octet
    found = authenticator_tag(bytes(token))
    assert found in (None, CIPHERTEXT[-16:]) or place >= len(token) - 16
