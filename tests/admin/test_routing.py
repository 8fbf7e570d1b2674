"""Commands of operators in a supervisor."""

from __future__ import annotations

import pytest

from popproxy.admin.commands import Commands
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.admin.routing import Router


@pytest.mark.parametrize("name", ["reboot", None, 7, ["who"], {"who": "alice"}])
async def test_what_is_no_command_is_answered_whatever_it_is(name: object) -> None:
    router = Router(Commands(), list)
    for carried_out in (router.execute(name, {}), _find(router, name)):
        with pytest.raises(CommandFailed, match="no such command") as failed:
            await carried_out
        assert failed.value.reason is Reason.UNKNOWN_COMMAND


async def _find(router: Router, name: object) -> object:
    return router.find(name)
