"""RPOP through the whole proxy: from where it is taken, in either meaning, and what is said elsewhere."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.peers.hashes import ssha512
from tests.session.rig import Peer, Rig, answer_login, running
from tests.session.sasl_client import capabilities

pytestmark = pytest.mark.usefixtures("quick_dummy")

WRONG = b"-ERR [AUTH] authentication failed"
NOT_HERE = b"-ERR RPOP is not offered here"
ID = "canary-pw-id"


def sections(directory: Path, meaning: str, **rpop: Any) -> dict[str, Any]:
    """A listener that takes no passwords from 127.0.0.1, and RPOP."""
    for name, text in {"master": "canary-pw-master", "vault.key": generate_key()}.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    vault = Vault.create(directory / "vault", Secret((directory / "vault.key").read_text()))
    vault.change({"alice": lambda record: record.with_rpop(Secret(ssha512(ID)))})
    (directory / "hosts").write_text("alice 127.0.0.1 ajones\n")
    master = {"user": "m", "password": {"file": str(directory / "master")}}
    table = {"hosts": str(directory / "hosts")} if meaning == "rfc" else {}
    return {
        "listener": {"rpop": meaning, "cleartext_networks": ["192.0.2.0/24"]},
        "rpop": {"networks": ["127.0.0.0/31"], **table, **rpop},
        "vault": {"file": str(directory / "vault"), "key": {"file": str(directory / "vault.key")}},
        "pool": {"login": ["forward", "master"], "master": master},
        "authentication": {"failure_delay": "10ms", "tries": 100},
    }


async def reserved(rig: Rig) -> Peer:
    """A connection from a port below 1024."""
    sock = socket.socket()
    sock.setblocking(False)
    for port in range(1023, 600, -1):
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        break
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port()))
    peer = Peer(sock)
    rig.clients.append(peer)
    assert (await peer.line()).startswith(b"+OK")
    return peer


async def rpop(client: Peer, user: str, argument: str) -> bytes:
    assert await client.command(f"USER {user}") == b"+OK send PASS"
    return await client.command(f"RPOP {argument}")


async def test_an_id_opens_the_maildrop_and_never_reaches_the_backend(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path, "id")) as rig:
        client = await rig.greeted()
        trying = asyncio.create_task(rpop(client, "Alice", ID))
        lines = await answer_login(await rig.backend.greeted())
        assert lines[-2:] == [b"USER alice*m\r\n", b"PASS canary-pw-master\r\n"]
        assert await trying == b"+OK Logged in"
        (login,) = rig.audit("login")
        assert (login["user.name"], login["auth.mechanism"]) == ("alice", "RPOP")
        assert ID not in str(rig.audit())


@pytest.mark.real  # as only root may connect from a reserved port
@pytest.mark.parametrize("meaning", ["rfc", "id"])
async def test_from_a_reserved_port(tmp_path: Path, meaning: str) -> None:
    async with running(tmp_path, **sections(tmp_path, meaning, reserved_port=True)) as rig:
        ordinary = await rig.greeted()
        assert (await ordinary.command("USER alice")).startswith(b"-ERR passwords are not taken")
        assert await ordinary.command("RPOP x") == NOT_HERE
        client = await reserved(rig)
        trying = asyncio.create_task(rpop(client, "alice", "ajones" if meaning == "rfc" else ID))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"


async def test_elsewhere_there_is_no_rpop(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path, "id")) as rig:
        stranger = await rig.greeted(source="127.0.0.9")
        assert (await stranger.command("USER alice")).startswith(b"-ERR passwords are not taken")
        assert await stranger.command(f"RPOP {ID}") == NOT_HERE


async def test_rpop_takes_no_password_along(tmp_path: Path) -> None:
    """USER is for RPOP alone where passwords may not go, and CAPA has no word for it."""
    async with running(tmp_path, **sections(tmp_path, "id")) as rig:
        client = await rig.greeted()
        assert not {"USER", "RPOP", "SASL"} & set(await capabilities(client))
        assert await client.command("USER alice") == b"+OK send PASS"
        assert (await client.command(f"PASS {ID}")).startswith(b"-ERR passwords are not taken")
        assert await client.command(f"RPOP {ID}") == b"-ERR send USER first"
        assert rig.backend.connections == []


async def test_every_failure_looks_the_same(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path, "id")) as rig:
        client = await rig.greeted()
        wrong = [("alice", "wrong"), ("nobody", ID), ("alice", ""), ("alice", "a\x07"), ("alice", "x" * 400)]
        for user, argument in wrong:
            assert await rpop(client, user, argument) == WRONG
        assert rig.backend.connections == []
        assert rig.metrics.auth_attempts[("RPOP", "failure", "bad_credentials")] == 3


async def test_where_it_is_off_it_is_off(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        assert await client.command("USER alice") == b"+OK send PASS"
        assert await client.command("RPOP x") == NOT_HERE
