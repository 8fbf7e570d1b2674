"""Where directories say that a user's mail is, asked once, by a process that serves nobody."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from popproxy.app.directories import DirectoryParts, start_directories
from popproxy.config.loader import Loaded
from popproxy.observe.metrics import Metrics
from popproxy.routing.places import Place
from popproxy.state.executors import BoundedExecutor


def ask_place(loaded: Loaded, user: str) -> Place:
    """What the directories of `routing` say of a canonical name. Raises ConfigError, Unavailable."""
    config = loaded.config
    wanted = {name: one for name, one in config.directories.items() if name in config.routing.directories}
    started = start_directories(replace(loaded, config=config.model_copy(update={"directories": wanted})))
    executor = BoundedExecutor("hashes", 1, 1, 1.0)

    async def ask() -> Place:
        loop, metrics = asyncio.get_running_loop(), Metrics([], [], list(wanted))
        asked = config.model_copy(update={"directories": wanted})
        parts = DirectoryParts(asked, started, metrics, loop, executor, lambda _user: 0.0)
        try:
            places = parts.places(config.routing)
            return None if places is None else await places.find(user)
        finally:
            await parts.hang_up()
            parts.close()

    try:
        return asyncio.run(ask())
    finally:
        executor.close()
