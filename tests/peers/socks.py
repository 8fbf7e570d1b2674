"""A real SOCKS5 proxy: microsocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.peers.process import Process, accepts, free_port, public_directory, require


class Socks:
    """Listens on `port` of 127.0.0.1; lets in whoever knows `login` (name and password), or everybody."""

    def __init__(self, process: Process, port: int) -> None:
        self._process = process
        self.port = port

    @property
    def address(self) -> str:
        """As it stands in a configuration."""
        return f"127.0.0.1:{self.port}"

    def log(self) -> str:
        """Whom it has connected with what: a line each."""
        return self._process.log.read_text()

    def stop(self) -> None:
        """Ends it, and what goes through it."""
        self._process.stop()


@contextlib.contextmanager
def microsocks(login: tuple[str, str] | None = None) -> Iterator[Socks]:
    """For the length of a with statement."""
    port = free_port()
    command = [require("microsocks"), "-i", "127.0.0.1", "-p", str(port)]
    if login is not None:
        command += ["-u", login[0], "-P", login[1]]
    with public_directory("socks") as directory:
        process = Process("microsocks", command, directory / "microsocks.log", directory)
        process.wait_for(lambda: accepts(port), "microsocks listens")
        try:
            yield Socks(process, port)
        finally:
            process.stop()
