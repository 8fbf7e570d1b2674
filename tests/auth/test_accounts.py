"""Accounts that the users file disables."""

from __future__ import annotations

from pathlib import Path

import pytest

from popproxy.auth.accounts import Accounts
from popproxy.auth.users_file import UsersFile
from popproxy.errors import Unavailable
from popproxy.state.executors import BoundedExecutor


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text("alice:!\nbob:*{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\ncarol:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\n")
    return path


def accounts(file: Path, queue: int = 10) -> tuple[Accounts, BoundedExecutor]:
    executor = BoundedExecutor("hashes", 1, queue, 5.0)
    return Accounts(UsersFile.load(file, str.lower, recheck=0), executor), executor


async def test_only_those_that_are_marked(file: Path) -> None:
    them, executor = accounts(file)
    assert [await them.disabled(name) for name in ("alice", "bob", "carol", "dave")] == [True, True, False, False]
    executor.close()


async def test_a_changed_file_counts_at_once(file: Path) -> None:
    them, executor = accounts(file)
    file.write_text("carol:!\n")
    assert [await them.disabled(name) for name in ("alice", "carol")] == [False, True]
    executor.close()


async def test_without_a_thread_to_read_it_nobody_can_tell(file: Path) -> None:
    them, executor = accounts(file)
    file.write_text("carol:!\n")
    executor.close()
    with pytest.raises(Unavailable):
        await them.disabled("carol")
