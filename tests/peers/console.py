"""OpenSSH's own client at popproxy's console, with keys and tickets of operators."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from tests.peers.process import free_port, require


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of ssh ended."""

    status: int
    output: str
    errors: str


class ConsoleClients:
    """A host key, and a key for each operator, in `directory`; `section` is what stands in the configuration."""

    def __init__(self, directory: Path, roles: dict[str, str], **more: Any) -> None:
        self.directory = directory
        self.port = free_port()
        host = asyncssh.generate_private_key("ssh-ed25519")
        self._write("host_key", host.export_private_key(), 0o600)
        self._write("known_hosts", f"[localhost]:{self.port} ".encode() + host.export_public_key(), 0o644)
        operators: dict[str, dict[str, Any]] = {}
        for name, role in roles.items():
            key = asyncssh.generate_private_key("ssh-ed25519")
            self._write(f"{name}.key", key.export_private_key(), 0o600)
            self._write(f"{name}.keys", key.export_public_key(), 0o644)
            operators[name] = {"role": role, "authorized_keys": str(directory / f"{name}.keys")}
        self.section = {
            "listen": f"127.0.0.1:{self.port}", "host_key": {"file": str(directory / "host_key")},
            "operators": operators, **more,
        }  # fmt: skip

    def _write(self, name: str, octets: bytes, mode: int) -> None:
        path = self.directory / name
        path.write_bytes(octets)
        path.chmod(mode)

    def command(self, user: str, *words: str, key: str | None = "", options: tuple[str, ...] = ()) -> list[str]:
        """The command line of ssh; `key` another operator's, None for Kerberos."""
        common = (
            "StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.directory}/known_hosts", "BatchMode=yes",
            "GlobalKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "IdentityAgent=none", "ConnectTimeout=20",
        )  # fmt: skip
        login = ("GSSAPIAuthentication=yes", "PubkeyAuthentication=no", "GSSAPIDelegateCredentials=no")
        if key is not None:
            login = (
                "GSSAPIAuthentication=no",
                "PubkeyAuthentication=yes",
                f"IdentityFile={self.directory}/{key or user}.key",
            )
        chosen = [word for option in (*common, *login) for word in ("-o", option)]
        return [require("ssh"), "-F", "none", *chosen, *options, "-p", str(self.port), f"{user}@localhost", *words]

    async def run(self, user: str, *words: str, env: dict[str, str] | None = None, text: str = "", **how: Any) -> Ended:
        """ssh with a command and no terminal."""
        process = await asyncio.create_subprocess_exec(
            *self.command(user, *words, **how), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, errors = await process.communicate(text.encode())
        assert process.returncode is not None
        return Ended(process.returncode, output.decode().replace("\r\n", "\n"), errors.decode())


class Terminal:
    """ssh on a terminal of its own: what a person types and sees."""

    def __init__(self, command: list[str]) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        stty = shutil.which("stty")
        assert stty is not None
        subprocess.run([stty, "rows", "30", "cols", "100"], stdin=slave, check=True)
        environment = {**os.environ, "TERM": "xterm-256color"}
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
        )
        os.close(slave)
        os.set_blocking(self._master, False)

    def type(self, text: str) -> None:
        """Keys."""
        os.write(self._master, text.encode())

    async def sees(self, pattern: str, seconds: float = 30) -> str:
        """Wait until `pattern` is among what has not been looked at yet, and return it; what comes before is gone."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            assert loop.time() < end, f"never {pattern!r} in {self.seen!r}"
            try:
                octets = os.read(self._master, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.01)
                continue
            except OSError:
                octets = b""
            assert octets, f"ended before {pattern!r}: {self.seen!r}"
            self.seen += octets.decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found.group()

    async def ends(self) -> int:
        """The exit status."""
        async with asyncio.timeout(30):
            while self._process.poll() is None:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                except OSError:
                    await asyncio.sleep(0.01)
        os.close(self._master)
        return self._process.returncode or 0
