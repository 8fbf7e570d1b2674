"""A client's half of SASL exchanges, over a `Peer`. Each returns the server's last line."""

from __future__ import annotations

import base64
import hmac

from scramp import ScramClient

from tests.session.rig import Peer

END_POINT = "tls-server-end-point"


def b64(octets: bytes | str) -> bytes:
    """An argument of AUTH, or an answer to a challenge."""
    return base64.b64encode(octets.encode() if isinstance(octets, str) else octets)


def challenge(line: bytes) -> bytes:
    """The octets of a challenge."""
    assert line.startswith(b"+ "), line
    return base64.b64decode(line[2:])


async def cram_md5(client: Peer, user: str, password: str) -> bytes:
    """CRAM-MD5."""
    asked = challenge(await client.command("AUTH CRAM-MD5"))
    return await client.command(b64(f"{user} {hmac.new(password.encode(), asked, 'md5').hexdigest()}"))


async def scram(
    client: Peer, mechanism: str, user: str, password: str, end_point: bytes | None = None, *, seen: list[bytes]
) -> bytes:
    """SCRAM; `seen` collects the server's first message and signature."""
    binding = None if end_point is None else (END_POINT, end_point)
    exchange = ScramClient([mechanism], user, password, channel_binding=binding)
    answer = await client.command(f"AUTH {mechanism} ".encode() + b64(exchange.get_client_first()))
    if not answer.startswith(b"+ "):
        return answer
    seen.append(challenge(answer))
    exchange.set_server_first(seen[-1].decode())
    answer = await client.command(b64(exchange.get_client_final()))
    if not answer.startswith(b"+ "):
        return answer
    seen.append(challenge(answer))
    exchange.set_server_final(seen[-1].decode())
    return await client.command(b"")


async def capabilities(client: Peer) -> dict[str, list[str]]:
    """CAPA."""
    assert (await client.command("CAPA")).startswith(b"+OK")
    found = {}
    while (line := await client.line()) != b".\r\n":
        name, *arguments = line.decode().split()
        found[name] = arguments
    return found
