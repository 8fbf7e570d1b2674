"""A disabled account stays closed, however its user proves who he is; and nobody outside is told why."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.session.rig import Peer, answer_login, running, until

WRONG = b"-ERR [AUTH] authentication failed"


def sections(directory: Path, users: str) -> dict[str, Any]:
    """A listener with APOP, a vault with alice's secret, and a users file that need not know her."""
    (directory / "users").write_text(users)
    raw = generate_key()
    (directory / "vault.key").write_text(raw)
    (directory / "vault.key").chmod(0o600)
    Vault.create(directory / "vault", Secret(raw)).set("alice", Secret("canary-pw-alice"))
    return {
        "listener": {"apop": True, "authenticate": ["users"]},
        "users": {"file": str(directory / "users")},
        "vault": {"file": str(directory / "vault"), "key": {"file": str(directory / "vault.key")}},
        "pool": {"login": ["stored"]},
    }


async def apop(client: Peer, secret: str = "canary-pw-alice") -> bytes:
    greeting = await client.line()
    timestamp = greeting[greeting.index(b"<") : greeting.index(b">") + 1]
    digest = hashlib.md5(timestamp + secret.encode()).hexdigest()
    return await client.command(f"APOP alice {digest}")


@pytest.mark.parametrize("users", ["alice:!\n", "ALICE:*LK*\n"])
async def test_a_disabled_account_is_closed_to_apop(tmp_path: Path, users: str) -> None:
    async with running(tmp_path, **sections(tmp_path, users)) as rig:
        assert await apop(await rig.client()) == WRONG
        (record,) = rig.audit("auth")
        assert record["event.reason"] == "disabled"
        assert record["event.outcome"] == "failure"
        assert rig.backend.connections == []
        assert rig.metrics.auth_attempts[("APOP", "failure", "disabled")] == 1
        assert await apop(await rig.client(), "canary-pw-wrong") == WRONG
        assert rig.audit("auth")[-1]["event.reason"] == "bad_credentials", "who cannot prove it learns nothing"


async def test_accounts_that_the_file_does_not_know_are_open(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path, "bob:!\n")) as rig:
        trying = asyncio.create_task(apop(await rig.client()))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"


async def test_closing_an_account_needs_no_restart(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path, "bob:!\n")) as rig:
        users = tmp_path / "users"
        users.write_text("alice:!\n")
        await asyncio.sleep(1.1)  # the file is looked at once in a second
        assert await apop(await rig.client()) == WRONG
        await until(lambda: rig.audit("auth"), "the record")
        assert rig.audit("auth")[-1]["event.reason"] == "disabled"
