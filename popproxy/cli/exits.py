"""How a command ends: exit codes as in sysexits.h, and one plain line for each thing that went wrong."""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum
from pathlib import Path

from popproxy.errors import (
    AuditError,
    BackendError,
    ChannelError,
    ConfigError,
    PopproxyError,
    Unavailable,
    VaultError,
)


class ExitCode(IntEnum):
    """The codes that popproxy uses, by their names in sysexits.h without EX_."""

    OK = 0
    USAGE = 64
    DATAERR = 65
    NOINPUT = 66
    NOUSER = 67
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANTCREAT = 73
    IOERR = 74
    NOPERM = 77
    CONFIG = 78


class CommandError(PopproxyError):
    """A command cannot do what was asked; its text is for the person who typed it."""

    def __init__(self, text: str, code: ExitCode) -> None:
        super().__init__(text)
        self.code = code


def explain(error: Exception) -> tuple[ExitCode, list[str]]:
    """The exit code for `error` and what to print on standard error, line by line."""
    match error:
        case ConfigError():
            return ExitCode.CONFIG, [str(problem) for problem in error.problems]
        case CommandError():
            return error.code, str(error).splitlines()
        case VaultError():
            cause = error.__cause__ or error.__context__
            return _os_code(cause) if isinstance(cause, OSError) else ExitCode.CONFIG, str(error).splitlines()
        case AuditError():
            return ExitCode.IOERR, [str(error)]
        case Unavailable() | ChannelError() | BackendError():
            return ExitCode.UNAVAILABLE, [str(error)]
        case OSError():
            return _os_code(error), [_os_text(error)]
        case _:
            return ExitCode.SOFTWARE, [_internal(error)]


def complain(lines: list[str]) -> None:
    """Print `lines` on standard error, each marked as ours."""
    for line in lines:
        print(f"popproxy: {line}", file=sys.stderr)


def _os_code(error: OSError) -> ExitCode:
    if isinstance(error, PermissionError):
        return ExitCode.NOPERM
    if isinstance(error, FileExistsError):
        return ExitCode.CANTCREAT
    if isinstance(error, FileNotFoundError):
        return ExitCode.NOINPUT
    return ExitCode.IOERR


def _os_text(error: OSError) -> str:
    what = error.strerror or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what


def _internal(error: Exception) -> str:
    """Type and place only: the text of a foreign exception may quote what it was given."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])
    ours = [frame for frame in frames if frame.filename.startswith(package)] or list(frames)
    place = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    more = "for more, set logging.level: debug, or run again with POPPROXY_TRACEBACK=1"
    return f"internal error: {type(error).__name__}{place}; this is a bug, please report it; {more}"
