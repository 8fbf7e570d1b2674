"""The program of the supervisor: ``python -P -m popproxy.app.supervising FILE [DESCRIPTOR]``.

`popproxy serve` becomes it. With a descriptor it goes on with what an earlier version has begun (app/succession).
"""

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

    path, *told = sys.argv[1:]
    return asyncio.run(supervise(path, int(told[0]) if told else None))


if __name__ == "__main__":
    sys.exit(main())
