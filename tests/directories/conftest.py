"""Directories as the composition root makes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from popproxy.config.model_directories import Ldap
from popproxy.directories.ldap import WORKER, LdapDirectory, worker_settings
from popproxy.state.helper import Helper, start_helper
from popproxy.types import Secret

MakeLdap = Callable[..., LdapDirectory]


@pytest.fixture
async def make_ldap() -> AsyncIterator[MakeLdap]:
    helpers: list[Helper] = []

    def make(
        *servers: str, password: str | None = None, ca: str = "", workers: int = 2, deadline: float = 20,
        connect: float = 3, **keys: Any,
    ) -> LdapDirectory:  # fmt: skip
        if password is not None:
            keys["account"] = {"dn": keys["account"], "password": {"env": "UNUSED"}}
        config = Ldap.model_validate({"servers": list(servers), **keys})
        secret = None if password is None else Secret(password)
        started = start_helper(WORKER, worker_settings(config, secret, ca, connect), workers=workers)
        loop = asyncio.get_running_loop()
        helper = Helper("test", started, loop, workers=workers, queue_limit=50, deadline=deadline)
        helpers.append(helper)
        return LdapDirectory("corp", config, helper)

    yield make
    for helper in helpers:
        helper.close()
