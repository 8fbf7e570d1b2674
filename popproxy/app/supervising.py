"""The program of the supervisor: ``python -P -m popproxy.app.supervising FILE``, which `popproxy serve` becomes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import NoReturn

from popproxy.app.hardening import keep_memory

SUPERVISOR = "popproxy.app.supervising"
"""This module: what the supervisor's command line shows."""


def become_supervisor(path: Path) -> NoReturn:
    """Replace this process's program by the supervisor's, which carries none of the command line's modules along."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", SUPERVISOR, str(path)])  # noqa: S606


def main() -> int:
    """Run the supervisor."""
    keep_memory()
    from popproxy.app.supervisor import supervise  # noqa: PLC0415 - not needed where only the program is replaced

    return asyncio.run(supervise(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
