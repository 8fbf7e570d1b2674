"""The C programs of the benchmark: compiled into ``build/`` when they are missing or older than their sources."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "tools"
BUILD = HERE / "build"
# OpenSSL is linked statically: sharing its pages with the load generator would lower the memory that a proxy shows
_LOAD = (("load.c", "session.c", "wire.c", "maildrop.c"), ("-l:libssl.a", "-l:libcrypto.a"))
_BACKEND = (("backend.c", "maildrop.c"), ())


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the programs are. The comments at the top of ``load.c`` and ``backend.c`` say how to call them."""

    load: Path
    backend: Path


class CompileError(Exception):
    """A tool could not be compiled; the text is the compiler's, and what to install."""


def tools() -> Tools:
    """The programs, up to date. Raises CompileError."""
    BUILD.mkdir(exist_ok=True)
    return Tools(_compiled("load", *_LOAD), _compiled("backend", *_BACKEND))


def _compiled(name: str, sources: tuple[str, ...], libraries: tuple[str, ...]) -> Path:
    program = BUILD / name
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if program.exists() and program.stat().st_mtime > newest:
        return program
    handle, made = tempfile.mkstemp(dir=BUILD)  # renamed when it is whole: somebody else may compile it, too
    os.close(handle)
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", made, *(str(SOURCES / source) for source in sources), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CompileError("gcc is not installed; run: make bench") from None
    if done.returncode:
        raise CompileError(f"{done.stderr}\nif something is not installed, run: make bench")
    Path(made).chmod(0o755)
    Path(made).rename(program)
    return program
