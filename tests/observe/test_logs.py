"""The operational log: readable, parseable, and no way for a peer's text to forge a line or for a secret to get in."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from popproxy.observe.logs import Format, configure, get_logger
from popproxy.types import Secret

CANARY = "canary-hunter2"
HOSTILE = 'a\r\n2026-01-01 [error] forged\x1b[2J\x9b\u2028"\udc80'


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Sometimes(io.StringIO):
    """A file on a disk that is full for a while."""

    room = True

    def write(self, text: str) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail_with_a_secret_local() -> None:
    password = CANARY
    raise ValueError(f"bad length {len(password)}")


def test_json_lines_have_time_level_logger_and_fields() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    get_logger("popproxy.net").info("listening", port=110)
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {"event": "listening", "level": "info", "logger": "popproxy.net", "port": 110}


def test_levels_below_the_threshold_are_silent_and_can_be_changed() -> None:
    stream = io.StringIO()
    logger = get_logger("x")
    configure("warning", "json", stream)
    logger.info("one")
    logger.warning("two")
    configure("debug", "json", stream)
    logger.debug("three")
    assert [line["event"] for line in lines(stream)] == ["two", "three"]


@pytest.mark.parametrize(
    ("format", "stream", "starts_with"),
    [
        ("auto", io.StringIO(), "{"),
        ("auto", Terminal(), "\x1b"),
        ("console", io.StringIO(), "2"),
        ("json", Terminal(), "{"),
    ],
)
def test_colours_and_console_are_for_terminals(format: Format, stream: io.StringIO, starts_with: str) -> None:
    configure("info", format, stream)
    get_logger("x").info("hello")
    assert stream.getvalue().startswith(starts_with)
    assert stream.getvalue().endswith("\n")
    assert ("\x1b" in stream.getvalue()) == (starts_with == "\x1b")


@pytest.mark.parametrize("format", ["console", "json"])
def test_no_secret_gets_through(format: Format) -> None:
    stream = io.StringIO()
    configure("debug", format, stream)
    secret = Secret(CANARY)
    get_logger("x").info(
        "login",
        credential=secret,
        nested={"list": [secret, (secret,)], "api_key": CANARY, "Authorization": CANARY},
        password=CANARY,
        client_secret=CANARY,
        token=CANARY,
        vault_key=CANARY,
        user="alice",
    )
    logging.getLogger("aiohttp.server").warning("standard %s %r", secret, secret)
    try:
        fail_with_a_secret_local()
    except ValueError:
        get_logger("x").exception("failed")
        logging.getLogger("asyncio").exception("failed in a task")
    text = stream.getvalue()
    assert CANARY not in text
    assert "alice" in text
    assert "ValueError: bad length 14" in text
    assert "****" in text


def test_names_that_only_look_like_secrets_are_kept() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    get_logger("x").info("e", monkey="m", keyboard="k", passed=1, keys_read=2)
    (line,) = lines(stream)
    assert (line["monkey"], line["keyboard"], line["passed"]) == ("m", "k", 1)


@pytest.mark.parametrize("format", ["console", "json"])
def test_hostile_text_makes_no_line_of_its_own(format: Format) -> None:
    stream = io.StringIO()
    configure("info", format, stream)
    get_logger("x").warning(HOSTILE, user=HOSTILE, nested={HOSTILE: [HOSTILE]})
    logging.getLogger("aiohttp").warning("%s", HOSTILE)
    text = stream.getvalue()
    assert text.count("\n") == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\ud800-\udfff]", text)
    text.encode()


@pytest.mark.parametrize("format", ["console", "json"])
def test_a_traceback_cannot_be_taken_for_a_log_line(format: Format) -> None:
    stream = io.StringIO()
    configure("info", format, stream)
    try:
        raise ValueError("x\n2026-01-01 [error] forged\x1b[2J")
    except ValueError:
        get_logger("x").exception("failed")
    text = stream.getvalue()
    assert not re.search(r"^2026-01-01", text, re.MULTILINE)
    assert "\x1b" not in text
    assert "test_logs.py" in text


def test_standard_logging_comes_out_the_same_way() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("aiohttp.server").info("hello %d", 7)
    logging.getLogger("aiohttp.server").debug("not shown")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("hello 7", "info", "aiohttp.server")


async def test_asyncio_keeps_quiet_about_arguments_even_at_debug_level() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    configure("debug", "json", io.StringIO())
    assert not loop.get_debug()
    assert not logging.getLogger("asyncio").isEnabledFor(logging.DEBUG)


def test_a_log_that_cannot_be_written_stops_nothing_and_says_later_what_is_missing() -> None:
    with open("/dev/full", "w", buffering=1) as full:
        configure("info", "json", full)
        get_logger("x").error("lost")
        logging.getLogger("y").error("lost, too")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    stream = Sometimes()
    configure("info", "json", stream)
    for stream.room in (True, False, False, True, True):
        get_logger("x").error("line")
    assert [line.get("lines_lost") for line in lines(stream)] == [None, 2, None]
