"""The rehearsal of an upgrade: ``python -P -m popproxy.app.rehearsing``, with what is handed over as standard input.

It loads all the modules of supervisor and workers as they are installed now, understands what the running supervisor
knows, and says so in one line of JSON: ``{"version": ...}``, or ``{"failed": why}``. Nothing else happens.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback

_ALL = ("popproxy.app.nursery", "popproxy.admin.http", "popproxy.app.worker", "popproxy.app.supervisor")


def main() -> int:
    """Rehearse."""
    try:
        from popproxy.app.hardening import keep_memory  # noqa: PLC0415 - it may be what is broken

        keep_memory()
        for module in _ALL:
            importlib.import_module(module)
        from popproxy import __version__  # noqa: PLC0415
        from popproxy.app.succession import read, rehearse  # noqa: PLC0415

        rehearse(read(sys.stdin.fileno()))
        said = {"version": __version__}
    except Exception as error:
        said = {"failed": _explained(error)}
    print(json.dumps(said))
    return 0


def _explained(error: Exception) -> str:
    """What is wrong, and where."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{place.filename}:{place.lineno}: {type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
