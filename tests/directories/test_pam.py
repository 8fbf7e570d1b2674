"""PAM with its real modules, pam_unix among them: passwords, accounts, and stacks that hang or make no sense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from popproxy.config.model_directories import Pam
from popproxy.directories.entry import Entry, Refused
from popproxy.directories.pam import WORKER, PamDirectory, worker_settings
from popproxy.errors import Unavailable
from popproxy.state.helper import Helper, start_helper
from popproxy.types import Address, AuthFailure, Secret, Visit
from tests.peers.canaries import canary
from tests.peers.pam import UNIX, LocalUser, PamSystem, pam_system
from tests.peers.process import public_directory

pytestmark = pytest.mark.real

ALICE = canary("alice")
USERS = {
    "alice": LocalUser(ALICE),
    "expired": LocalUser(ALICE, expires="1"),
    "stale": LocalUser(ALICE, changed=0),
    "locked": LocalUser(ALICE, locked=True),
}
STRANGER, WRONG = Refused(stranger=True), Refused(AuthFailure.BAD_CREDENTIALS)
Make = Callable[..., PamDirectory]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with public_directory("pam-scratch") as directory:
        yield directory


@pytest.fixture(scope="module")
def system(scratch: Path) -> Iterator[PamSystem]:
    keep = scratch / "keep"
    keep.write_text(f"#!/bin/sh\nhead -c 1000 >{scratch}/said\necho $PAM_RHOST $PAM_TTY $PAM_USER >{scratch}/items\n")
    keep.chmod(0o755)
    access = scratch / "access.conf"
    access.write_text("-:ALL:ALL EXCEPT 192.0.2.7\n")
    services = {
        "popproxy": UNIX,
        "delay": "auth optional pam_faildelay.so delay=60000000\n" + UNIX,
        "exec": f"auth required pam_exec.so quiet expose_authtok {keep}\naccount required pam_permit.so\n",
        "slow": "auth required pam_exec.so quiet /bin/sleep 600\naccount required pam_permit.so\n",
        "missing": "auth required pam_popproxy_is_not_there.so\naccount required pam_permit.so\n",
        "access": f"auth required pam_unix.so\naccount required pam_access.so accessfile={access}\n",
        "pin": "auth required pam_debug.so auth=success\naccount required pam_debug.so acct=success\n",
    }
    with pam_system(USERS, services) as running:
        yield running


@pytest.fixture
async def make(system: PamSystem) -> AsyncIterator[Make]:
    helpers: list[Helper] = []

    def open_directory(
        service: str = "popproxy", *, deadline: float = 30, workers: int = 2, user: str = "{user}"
    ) -> PamDirectory:
        config = Pam(service=service, user=user)
        started = system.run(lambda: start_helper(WORKER, worker_settings(config), workers=workers))
        loop = asyncio.get_running_loop()
        helpers.append(Helper("test", started, loop, workers=workers, queue_limit=50, deadline=deadline))
        return PamDirectory("system", config, helpers[-1])

    yield open_directory
    for helper in helpers:
        helper.close()


async def test_passwords_of_the_system(make: Make) -> None:
    directory = make()
    assert await directory.verify("alice", Secret(ALICE)) == Entry()
    assert await directory.verify("alice", Secret(canary())) == WRONG
    assert await directory.verify("nobody-of-this-name", Secret(ALICE)) == STRANGER
    assert await directory.verify("alice", Secret("")) == Refused(AuthFailure.EMPTY)
    assert await make(user="{local}").verify("alice@example.com", Secret(ALICE)) == Entry()
    for name in ("alice@example.com", "../alice", "-alice", "alice:x"):
        assert await directory.verify(name, Secret(ALICE)) == STRANGER


async def test_accounts_are_managed_and_only_who_knows_the_password_is_told(make: Make) -> None:
    directory = make()
    assert await directory.verify("expired", Secret(ALICE)) == Refused(AuthFailure.ACCOUNT_EXPIRED)
    assert await directory.verify("stale", Secret(ALICE)) == Refused(AuthFailure.PASSWORD_EXPIRED)
    assert await directory.verify("locked", Secret(ALICE)) == WRONG
    for user in ("expired", "stale"):
        assert await directory.verify(user, Secret(canary())) == WRONG


async def test_a_wrong_password_does_not_occupy_a_worker_for_as_long_as_pam_would_wait(make: Make) -> None:
    """The stack asks for a minute, and pam_unix for two seconds."""
    directory = make("delay", deadline=50, workers=1)
    started = time.monotonic()
    assert await directory.verify("alice", Secret(canary())) == WRONG
    assert await directory.verify("alice", Secret(ALICE)) == Entry()
    assert time.monotonic() - started < 40


@pytest.mark.parametrize("password", ["a b%c", b"m\xfcller", "\u00fc" * 200])
async def test_modules_get_the_password_as_it_is_and_know_where_the_client_is(
    make: Make, scratch: Path, password: str | bytes
) -> None:
    visit = Visit(Address("192.0.2.7", 1), True, 1)
    assert await make("exec").verify("alice", Secret(password), visit) == Entry()
    assert (scratch / "said").read_bytes().rstrip(b"\0") == Secret(password).reveal()
    assert (scratch / "items").read_text() == "192.0.2.7 popproxy alice\n"


async def test_who_may_not_come_from_there(make: Make) -> None:
    directory = make("access")
    for host, answer in (("192.0.2.7", Entry()), ("192.0.2.8", Refused(AuthFailure.ACCOUNT_RESTRICTED))):
        assert await directory.verify("alice", Secret(ALICE), Visit(Address(host, 1), True, 1)) == answer


@pytest.mark.parametrize(
    ("auth", "account", "answer"),
    [
        ("success", "success", Entry()), ("user_unknown", "success", STRANGER),
        ("maxtries", "success", Refused(AuthFailure.ACCOUNT_LOCKED)),
        ("perm_denied", "success", Refused(AuthFailure.ACCOUNT_RESTRICTED)),
        ("success", "acct_expired", Refused(AuthFailure.ACCOUNT_EXPIRED)),
        ("success", "new_authtok_reqd", Refused(AuthFailure.PASSWORD_EXPIRED)),
        ("success", "perm_denied", Refused(AuthFailure.ACCOUNT_RESTRICTED)),
        ("success", "user_unknown", Refused(AuthFailure.ACCOUNT_RESTRICTED)),
        ("authinfo_unavail", "success", None), ("system_err", "success", None), ("cred_insufficient", "success", None),
        ("conv_err", "success", None), ("abort", "success", None), ("success", "authinfo_unavail", None),
        ("success", "service_err", None),
    ],
)  # fmt: skip
async def test_what_modules_say(
    make: Make, system: PamSystem, auth: str, account: str, answer: Entry | Refused | None
) -> None:
    (system.services / "pin").write_text(
        f"auth required pam_debug.so auth={auth}\naccount required pam_debug.so acct={account}\n"
    )
    directory = make("pin", workers=1)
    if answer is None:
        with pytest.raises(Unavailable, match=r"system: (auth|account) fails: "):
            await directory.verify("alice", Secret(ALICE))
    else:
        assert await directory.verify("alice", Secret(ALICE)) == answer


async def test_a_module_that_is_not_there_is_nobodys_wrong_password(make: Make) -> None:
    with pytest.raises(Unavailable, match="auth fails: Module is unknown"):
        await make("missing").verify("alice", Secret(ALICE))


async def test_a_stack_that_hangs_is_killed_at_the_deadline(make: Make) -> None:
    slow = make("slow", deadline=1, workers=1)
    quick = make()
    hanging = asyncio.ensure_future(slow.verify("alice", Secret(ALICE)))
    assert await quick.verify("alice", Secret(ALICE)) == Entry()
    with pytest.raises(Unavailable, match="no answer within 1 s"):
        await hanging
    with pytest.raises(Unavailable, match="no answer within 1 s"):
        await slow.verify("alice", Secret(ALICE))


async def test_a_service_that_nobody_has_described_is_not_taken_for_the_service_other(make: Make) -> None:
    with pytest.raises(Unavailable, match=r"there is no /etc/pam.d/elsewhere"):
        make("elsewhere")


async def test_many_at_once(make: Make) -> None:
    directory = make(workers=4)
    asked = [directory.verify("alice", Secret(ALICE if number % 2 else canary())) for number in range(40)]
    assert await asyncio.gather(*asked) == [Entry() if number % 2 else WRONG for number in range(40)]
