"""Configurations, certificates and processes for the tests of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from popproxy.demo.certificates import Issued, issue, make_authority

PROGRAM = [sys.executable, "-m", "popproxy"]
CANARY = "correct-horse-canary"


def popproxy(
    *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the program as a process of its own, standard input being a pipe."""
    environment = {**os.environ, "NO_COLOR": "1", **(env or {})}
    return subprocess.run(
        [*PROGRAM, *arguments], input=stdin, capture_output=True, timeout=60, env=environment, check=False
    )


def write_pair(directory: Path, issued: Issued, name: str = "server", chain: tuple[Issued, ...] = ()) -> dict[str, str]:
    """Certificate (with `chain`) and key as files; returns them as they stand in a configuration."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    cert.write_bytes(b"".join(one.certificate_pem() for one in (issued, *chain)))
    key.write_bytes(issued.key_pem())
    key.chmod(0o600)
    return {"cert": str(cert), "key": str(key)}


def configuration(directory: Path, **sections: Any) -> dict[str, Any]:
    """A configuration that is in order (offline), with `sections` replaced or added; None removes one."""
    authority = make_authority(days=400)
    base: dict[str, Any] = {
        "listeners": [{"name": "pop3", "listen": ["127.0.0.1:0"]}],
        "pools": {"main": {"servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True}},
        "tls": {"certificates": [write_pair(directory, issue(authority, ["localhost"], days=300), chain=(authority,))]},
        "audit": {"file": str(directory / "audit.jsonl")},
        "http": {"listen": None},
        "process": {"user": "nobody"} if os.geteuid() == 0 else {},
    }
    directory.chmod(0o777)
    return {key: value for key, value in {**base, **sections}.items() if value is not None}


def write_config(directory: Path, **sections: Any) -> Path:
    """`configuration` as a file; JSON is YAML."""
    path = directory / "popproxy.yaml"
    path.write_text(json.dumps(configuration(directory, **sections), indent=1))
    return path
