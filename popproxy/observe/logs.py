"""The operational log: structlog, to one stream, for people (console) or machines (JSON lines).

It is for what is rare; what happens once per message goes into the audit log and the metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from popproxy.types import Secret

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

MASK = "****"

_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token|credential|authorization|cookie|digest|(?:^|[^a-z])(?:api)?keys?(?:$|[^a-z])",
    re.IGNORECASE,
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line and paragraph separators, marks that turn the direction of writing, lone surrogates."""
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def configure(level: Level, format: Format, stream: TextIO | None = None) -> None:
    """Set up the operational log, and the standard library's logging with it; may be called again.

    `stream` is standard error by default. ``auto`` means console on a terminal, JSON otherwise; colours only on a
    terminal.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    lenient = _Lenient(stream)
    renderer = _console(terminal) if format == "console" or (format == "auto" and terminal) else _json()
    threshold = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _name_logger,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lenient.tell_lost,
    ]
    finish: list[Processor] = [structlog.processors.format_exc_info, redact, *renderer]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast("Any", lenient)),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(threshold, cast("TextIO", lenient), shared, finish)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry ``logger=name``; follows every later `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(logger_name=name))


def bind(**fields: object) -> None:
    """Have every line of this process carry `fields`."""
    structlog.contextvars.bind_contextvars(**fields)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor: masks every `Secret` and every value whose name speaks of one, however deep."""
    return cast("EventDict", _redacted(event))


def escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    r"""Processor: writes control characters as ``\x1b``, so that no value can start a line or steer a terminal.

    Tracebacks keep their line ends but are indented, so that none of their lines can be taken for a log line.
    """
    exception = event.pop("exception", None)
    escaped = cast("EventDict", _escaped(event, _UNPRINTABLE))
    if exception is not None:
        escaped["exception"] = "\n".join("  " + _escape(line, _UNPRINTABLE) for line in str(exception).split("\n"))
    return escaped


class _Lenient:
    """A stream of log lines. What cannot be written (a full disk, a reader that is gone) stops nobody's work.

    It is counted; the next line that is written says so (`tell_lost`).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0

    def write(self, text: str) -> None:
        """A line."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the latter: it is closed
            self._lost += 1
        else:
            self._lost = 0

    def flush(self) -> None:
        """Done by `write`."""

    def tell_lost(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Processor: adds how many lines before this one are missing."""
        if self._lost:
            event["lines_lost"] = self._lost
        return event


def _console(colors: bool) -> list[Processor]:
    # format_exc_info comes before, so structlog's own formatter (with rich: local variables!) never sees an exception.
    formatter = structlog.dev.plain_traceback
    return [escape_controls, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=formatter)]


def _json() -> list[Processor]:
    return [_escape_surrogates, structlog.processors.JSONRenderer(default=str)]


def _name_logger(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    name = event.pop("logger_name", None)  # structlog.get_logger has a parameter called logger
    if name is not None:
        event["logger"] = name
    return event


def _route_standard_logging(threshold: int, stream: TextIO, shared: list[Processor], finish: list[Processor]) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
            use_get_message=True,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    # At debug level asyncio prints the arguments of callbacks.
    logging.getLogger("asyncio").setLevel(max(threshold, logging.INFO))
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop().set_debug(False)


def _redacted(value: object) -> object:
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, Mapping):
        return {
            name: MASK if isinstance(name, str) and _SECRET_NAME.search(name) else _redacted(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(inner) for inner in value]
    return value


def _escape_surrogates(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return cast("EventDict", _escaped(event, _LONE_SURROGATE))  # JSON escapes the rest itself


def _escaped(value: object, characters: re.Pattern[str]) -> object:
    if isinstance(value, str):
        return _escape(value, characters)
    if isinstance(value, Mapping):
        return {_escape(str(name), characters): _escaped(inner, characters) for name, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner, characters) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else _escape(str(value), characters)


def _escape(text: str, characters: re.Pattern[str]) -> str:
    return characters.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
