"""What others look for in a server's TLS: the tester of the STARTTLS study (USENIX Security 2021), and sslyze."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import REPOSITORY, PeerMissingError
from tests.peers.proxy import StartProxy, settings

CURVES = REPOSITORY / "config/openssl/openssl.cnf"
PROBES = REPOSITORY / ".venv/probes/bin"


def probe(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not (PROBES / program).exists():
        raise PeerMissingError(f"{program} is not installed; run: make probes")
    return subprocess.run(
        [PROBES / "python", PROBES / program, *arguments], capture_output=True, text=True, timeout=100, check=False
    )


def inject(port: int, directory: Path) -> str:
    """What the tester says; it gives a server half a second for each answer."""
    options = ["--pop3", "--nocolor", "-t", "0.5", "-l", str(directory), "-p", str(port)]
    run = probe("command-injection-tester", *options, "localhost")
    assert "Sanity test done" in run.stdout, run.stdout + run.stderr
    return run.stdout


@contextlib.asynccontextmanager
async def naive_server(certificate: CertificateFiles) -> AsyncIterator[int]:
    """The mistake of CVE-2011-0411: what came in clear behind STLS is still in the buffer when TLS is up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK ready\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while line := await reader.readline():
                verb = line.strip().upper()
                writer.write(b"+OK\r\nTOP\r\nUIDL\r\n.\r\n" if verb == b"CAPA" else b"+OK\r\n")
                if verb == b"STLS":
                    await writer.start_tls(context)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.real
async def test_no_command_can_be_injected_before_tls(
    start_proxy: StartProxy, server_certificate: CertificateFiles, tmp_path: Path
) -> None:
    proxy = await asyncio.to_thread(start_proxy, settings("127.0.0.1:1", server_certificate))
    async with naive_server(server_certificate) as naive:
        said, control = await asyncio.gather(
            asyncio.to_thread(inject, proxy.port(), tmp_path), asyncio.to_thread(inject, naive, tmp_path / "control")
        )
    assert "Command injection here!" in control, "the tester would not have noticed"
    assert "Server probably closed the connection" in said
    assert "ommand injection" not in said.replace("Testing for command injection", ""), said


@pytest.mark.real
def test_tls_is_what_mozilla_calls_intermediate(
    start_proxy: StartProxy, authority: Authority, server_certificate: CertificateFiles
) -> None:
    proxy = start_proxy(settings("127.0.0.1:1", server_certificate), env={"OPENSSL_CONF": str(CURVES)})
    for options in ([f"localhost:{proxy.port('pop3s')}"], ["--starttls", "pop3", f"localhost:{proxy.port()}"]):
        run = probe(
            "sslyze", "--mozilla_config", "intermediate", "--certinfo_ca_file", str(authority.ca), *options
        )  # fmt: skip
        assert "OK - Compliant" in run.stdout, run.stdout + run.stderr
        assert run.returncode == 0, run.stdout


@pytest.mark.real
@pytest.mark.parametrize(
    ("offered", "answer"), [(None, None), (["pop3"], "pop3"), (["http/1.1"], "refused"), (["imap", "pop3"], "pop3")]
)
def test_another_application_protocol_is_refused(
    start_proxy: StartProxy,
    authority: Authority,
    server_certificate: CertificateFiles,
    offered: Any,
    answer: str | None,
) -> None:
    proxy = start_proxy(settings("127.0.0.1:1", server_certificate))
    arguments = [] if offered is None else ["-alpn", ",".join(offered)]
    server = ["-connect", f"127.0.0.1:{proxy.port('pop3s')}", "-CAfile", str(authority.ca)]
    run = subprocess.run(
        ["openssl", "s_client", *server, *arguments],
        input="QUIT\r\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if answer == "refused":
        assert "alert number 120" in run.stderr  # no_application_protocol
    else:
        assert "Verification: OK" in run.stdout
        assert ("No ALPN negotiated" if answer is None else f"ALPN protocol: {answer}") in run.stdout
