"""``popproxy check`` about the Redis that replicas share."""

from __future__ import annotations

from pathlib import Path

import pytest

from popproxy.app.check import check_environment
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers.canaries import canary
from tests.peers.redis import Redis

pytestmark = pytest.mark.real


def secret(directory: Path, name: str, text: str) -> dict[str, str]:
    file = directory / name
    file.write_text(text)
    file.chmod(0o600)
    return {"file": str(file)}


async def look(directory: Path, url: str, **section: object) -> list[tuple[str, str]]:
    """Level and text of what is said about it."""
    whole = {"url": url, "key": secret(directory, "key", "k" * 32), "timeout": "2s", **section}
    found = await check_environment(load_file(write_config(directory, shared_state=whole)))
    return [(one.level, f"{one.text} {one.cure}".strip()) for one in found if one.area.startswith("shared state ")]


async def test_everything_is_tried_and_nothing_left(tmp_path: Path) -> None:
    with Redis() as redis, redis.client() as client:
        ((level, text),) = await look(tmp_path, f"unix://{redis.path}")
        assert (level, text.endswith("ms; nobody shares it yet")) == ("ok", True)
        assert not [key for key in client.scan_iter() if b":l:" in key or b":c:" in key]
        ((level, text),) = await look(tmp_path, f"redis://127.0.0.1:{redis.port}", key=secret(tmp_path, "short", "abc"))
        assert (level, "openssl rand -base64 32" in text) == ("problem", True)
        client.execute_command("ACL", "SETUSER", "mail", "on", f">{canary()}", "+ping", "~*")
        password = secret(tmp_path, "password", canary())
        ((level, text),) = await look(tmp_path, f"unix://{redis.path}", username="mail", password=password)
        assert (level, "login refused" in text and "correct username and password" in text) == ("problem", True)
        ((level, text),) = await look(tmp_path, f"rediss://127.0.0.1:{redis.port}")
        assert (level, "or has it none (redis://)?" in text) == ("problem", True)
    ((level, text),) = await look(tmp_path, f"redis://127.0.0.1:{redis.port}")
    assert (level, "refuses connections start it, or correct url" in text) == ("problem", True)


async def test_what_was_written_with_another_key_is_found(tmp_path: Path) -> None:
    with Redis() as redis, redis.client() as client:
        client.xadd("{popproxy:0}:history", {"m": "somebody", "c": b"\1" * 40})
        found = await look(tmp_path, f"redis+sentinel://127.0.0.1:{redis.start_sentinel('mail')}/mail")
        assert [level for level, _ in found] == ["ok", "problem"]
        assert "the same shared_state.key" in found[1][1]
