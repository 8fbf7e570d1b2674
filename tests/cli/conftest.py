"""Directories of the tests here: the service gets to them after it has given up root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.process import public_directory


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not pytest's own: any other run of pytest that starts closes the directory above those to other users."""
    with public_directory("cli") as directory:
        yield directory
