"""Status lines: response codes are kept honest, whatever the backend says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import RemoteProtocolError
from popproxy.pop3 import replies
from popproxy.pop3.replies import Status, clean, parse_status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"+OK", Status(True, None, b"")),
        (b"-err  x", Status(False, None, b"x")),
        (b"-ERR [in-use] x", Status(False, "IN-USE", b"x")),
        (b"-ERR [SYS/TEMP]", Status(False, "SYS/TEMP", b"")),
        (b"-ERR[AUTH]x", Status(False, "AUTH", b"x")),
        (b"-ERR [a b] x", Status(False, None, b"[a b] x")),
        (b"-ERR [/] x", Status(False, None, b"[/] x")),
        (b"-ERR [] x", Status(False, None, b"[] x")),
        (b"-ERR [a/] x", Status(False, None, b"[a/] x")),
        (b"-ERR [\xe9] x", Status(False, None, b"[\xe9] x")),
    ],
)
def test_a_status_line_is_read(line: bytes, status: Status) -> None:
    assert parse_status(line) == status


@pytest.mark.parametrize("line", [b"", b"OK", b"+OKAY", b"-ERROR", b" +OK", b"+ ", b"+O", b"* OK", b"-ERR1"])
def test_what_is_neither_ok_nor_err_is_garbage(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_status(line)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"+OK 2 320", b"+OK 2 320"),
        (b"+OK", b"+OK"),
        (b"+ok 2 320", b"+OK 2 320"),
        (b"-err no", b"-ERR no"),
        (b"+OK caf\xc3\xa9", b"+OK caf\xc3\xa9"),
        (b"-ERR [IN-USE] locked", b"-ERR [IN-USE] locked"),
        (b"-ERR [sys/temp]later", b"-ERR [SYS/TEMP] later"),
        (b"-ERR [X-UNKNOWN] x", b"-ERR [X-UNKNOWN] x"),
        (b"-ERR [AUTH] x", b"-ERR x"),
        (b"-ERR [auth/expired] x", b"-ERR x"),
        (b"-ERR [AUTH] [AUTH] x", b"-ERR (AUTH) x"),
        (b"-ERR [AUTH]", b"-ERR"),
        (b"-ERR [no code] x", b"-ERR (no code) x"),
        (b"+OK [", b"+OK ("),
        (b"-ERR a\tb\0c\x1b[31m", b"-ERR a b c [31m"),
        (b"-ERR \x1b[AUTH] x", b"-ERR (AUTH) x"),
        (b"+OK " + b"x" * 506, b"+OK " + b"x" * 506),
        (b"+OK " + b"x" * 507, b"+OK " + b"x" * 506),
        (b"-ERR [" + b"A" * 600 + b"] x", b"-ERR x"),
    ],
)
def test_a_line_is_made_fit_to_be_shown(line: bytes, shown: bytes) -> None:
    assert clean(line, parse_status(line)) == shown + b"\r\n"


words = st.lists(
    st.sampled_from(
        [b"[", b"]", b"AUTH", b"auth", b"/", b" ", b"\t", b"\0", b"\r", b"\x1b", b"x" * 300, b"\xff", b"IN-USE"]
    ),
    max_size=10,
)


@given(
    st.sampled_from([b"+OK", b"-ERR", b"+ok", b"-Err"]), st.sampled_from([b"", b" ", b"  ", b"\t"]), words.map(b"".join)
)
def test_whatever_is_shown_keeps_the_promise_of_resp_codes(head: bytes, space: bytes, text: bytes) -> None:
    line = head + space + text
    try:
        status = parse_status(line)
    except RemoteProtocolError:
        return
    shown = clean(line, status)
    assert len(shown) <= replies.STATUS_LIMIT
    assert re.fullmatch(rb"(\+OK|-ERR)( [^\x00-\x1f\x7f]*)?\r\n", shown)
    again = parse_status(shown[:-2])
    assert again.ok == status.ok
    assert not (again.code or "").startswith("AUTH")
    assert again.code or not again.text.startswith(b"[")


def test_our_own_replies() -> None:
    assert replies.ok() == b"+OK\r\n"
    assert replies.ok("hi") == b"+OK hi\r\n"
    assert replies.err("no", "AUTH") == b"-ERR [AUTH] no\r\n"
    assert replies.err("nö") == b"-ERR n?\r\n"
