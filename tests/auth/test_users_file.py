"""The users file: what may stand in it, how mistakes are told, how changes arrive, and whom it lets in."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.auth.names import canonical
from popproxy.auth.result import Accepted, CannotTell, Declined, Rejected
from popproxy.auth.users_file import DISABLED, UsersFile, UsersFileAuthenticator
from popproxy.errors import ConfigError
from popproxy.sasl.credentials import ApopCredential, PasswordCredential
from popproxy.sasl.scram_verifier import make_verifier
from popproxy.state.executors import BoundedExecutor
from popproxy.types import AuthFailure, Identity, Mechanism, Secret
from tests.peers.hashes import ssha512

pytestmark = pytest.mark.usefixtures("quick_dummy")

ALICE = "CCX.K.MFy4Ois"  # U*U***U
BOB = "{SHA}qvTGHdzF6KLavt4PO0gs2a6pQ00="  # hello
CANARY = "canary-5ecret"


def fold(name: str) -> str:
    return canonical(name, "example.com", "fold")


def load(path: Path, text: str | bytes, recheck: float = 0) -> UsersFile:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return UsersFile.load(path, fold, recheck=recheck)


def problems(path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(path, text)
    assert CANARY not in f"{refused.value}{refused.value!r}"
    return [str(problem).removeprefix(f"{path}:") for problem in refused.value.problems]


def credential(user: str, password: str) -> PasswordCredential:
    return PasswordCredential(Mechanism.PLAIN, user, Secret(password))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def test_what_may_stand_in_the_file(path: Path) -> None:
    users = load(
        path,
        "\ufeff# comment\r\n"
        "\n"
        f"Alice:{ALICE}\r\n"
        f"  bob@Example.org : {BOB} \n"
        f"carol:{ALICE}:19000:0:99999:7:::\n"
        f"passwd:{ALICE}:1000:1000:Gecos:/home:/bin/sh\n"
        "locked:!\nstar:*\nshadow:!$6$abc:19000::::::\nnever:!!\n"
        f"jos\u00e9:{ALICE}",
    )
    assert users.lookup("alice@example.com") == ALICE
    assert users.lookup("bob@example.org") == BOB
    assert users.lookup("carol@example.com") == users.lookup("passwd@example.com") == ALICE
    assert users.lookup("jos\u00e9@example.com") == ALICE
    for name in ("locked", "star", "shadow", "never"):
        assert users.lookup(f"{name}@example.com") == DISABLED
    assert users.lookup("Alice") is None
    assert len(users) == len(users.users()) == 9


def test_every_mistake_is_told_at_once_with_line_and_cure(path: Path) -> None:
    text = "\n".join(
        [
            "# fine",
            CANARY,
            f"alice:{CANARY}",
            f"bob:{{PLAIN}}{CANARY}",
            f"carol:{ALICE}",
            f"CAROL:{BOB}",
            "dave:",
            f":{ALICE}",
            f"e\x07ve:{ALICE}",
            f"e\u202eve:{ALICE}",
            "frank:x:1000:1000::/:/bin/sh",
            "grace:{SSHA}" + CANARY,
        ]
    ).encode()
    assert problems(path, text + b"\nj\xf6rg:" + ALICE.encode()) == [
        "2: no colon; write name:hash",
        "3: not a password hash that popproxy knows; make one with popproxy hash-password",
        "4: the password stands here in clear; replace it with the output of popproxy hash-password",
        "6: the same user as on line 5; keep one of the two",
        "7: no hash after the colon; write name:hash, or name:! to disable the account",
        "8: no user name before the colon; write name:hash",
        "9: a control or invisible character in the user name; type the name again",
        "10: a control or invisible character in the user name; type the name again",
        "11: the hash is not here but in the shadow file; take the line from /etc/shadow",
        "12: what follows the prefix is not a hash of that kind; copy it again, or make a new one",
        "13: the user name is not UTF-8, or longer than 255 octets; save the file as UTF-8",
    ]


VERIFIER = (
    "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,"
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="  # pencil
)
OLD_VERIFIER = str(make_verifier(Mechanism.SCRAM_SHA_1, b"pencil", b"0123456789abcdef", 4096))


def test_verifiers_may_stand_in_place_of_a_hash_or_behind_it(path: Path) -> None:
    users = load(
        path,
        f"alice:{VERIFIER}\nbob:{BOB}  {VERIFIER} {OLD_VERIFIER}:19000:\ncarol:{OLD_VERIFIER} {BOB}\ndave:!{VERIFIER}\n"
        f"erin:{BOB}\n",
    )
    stored = {name: users.lookup(f"{name}@example.com") for name in ("alice", "bob", "carol", "dave")}
    assert stored == {"alice": VERIFIER, "bob": BOB, "carol": BOB, "dave": DISABLED}
    schemes = {
        name: sorted(users.verifiers(f"{name}@example.com")) for name in ("alice", "bob", "carol", "dave", "erin")
    }
    assert schemes == {
        "alice": ["SCRAM-SHA-256"],
        "bob": ["SCRAM-SHA-1", "SCRAM-SHA-256"],
        "carol": ["SCRAM-SHA-1"],
        "dave": [],
        "erin": [],
    }
    assert users.verifiers("nobody@example.com") == {}
    assert str(users.verifiers("bob@example.com")[Mechanism.SCRAM_SHA_256]) == VERIFIER


def test_a_verifier_that_cannot_be_used_is_told(path: Path) -> None:
    lines = [
        f"alice:{VERIFIER.replace('4096', '4000')}",
        f"bob:{VERIFIER} {VERIFIER}",
        f"carol:{BOB} {CANARY}",
        f"dave:{VERIFIER.replace('W22ZaJ0SNY7soEsUEjb6gQ==', 'AAAA')}",
        f"erin:{VERIFIER[:60]}",
        f"frank:{ALICE} {BOB}",
    ]
    assert problems(path, "\n".join(lines)) == [
        "1: 4000 iterations; clients take 4096 to 1000000; make another one with popproxy hash-password --scheme",
        "2: two verifiers for SCRAM-SHA-256; keep one of the two",
        "3: not a password hash that popproxy knows; make one with popproxy hash-password",
        "4: the SCRAM verifier is damaged; make another one with popproxy hash-password --scheme",
        "5: what follows the prefix is not a hash of that kind; copy it again, or make a new one",
        "6: two hashes for passwords; keep one of the two, and any SCRAM verifiers beside it",
    ]


async def test_a_verifier_checks_passwords_too(path: Path, executor: BoundedExecutor) -> None:
    authenticator = UsersFileAuthenticator(load(path, f"alice:{VERIFIER}\nbob:{OLD_VERIFIER} {VERIFIER}\n"), executor)
    for user in ("alice@example.com", "bob@example.com"):
        assert isinstance(await authenticator.authenticate(credential("x", "pencil"), user), Accepted)
        assert await authenticator.authenticate(credential("x", "hello"), user) == Rejected()
        assert await authenticator.authenticate(credential("x", "\ue000"), user) == Rejected()


def test_missing_file_is_a_configuration_error(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"users: cannot be read: No such file.*check users\.file"):
        UsersFile.load(path, fold)


@given(st.binary(max_size=200))
def test_any_file_loads_or_tells_its_problems(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-users"
    found = None
    try:
        load(path, octets)
    except ConfigError as error:
        found = error.problems
    assert found is None or (found and all(problem.what and problem.cure for problem in found))


def test_changed_file_is_read_again(path: Path) -> None:
    users = load(path, f"alice:{ALICE}\n")
    assert not users.is_stale()
    path.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    assert users.is_stale()
    users.refresh()
    assert not users.is_stale()
    assert users.lookup("bob@example.com") == BOB
    new = path.with_name("new")
    new.write_text(f"bob:{BOB}\n")
    os.replace(new, path)
    assert users.is_stale()
    users.refresh()
    assert users.lookup("alice@example.com") is None


def test_change_that_keeps_size_and_mtime_is_seen(path: Path) -> None:
    users = load(path, f"alice:{ALICE}\n")
    before = path.stat()
    new = path.with_name("new")
    new.write_text(f"alicf:{ALICE}\n")
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, path)
    assert users.is_stale()


def test_file_is_looked_at_once_in_the_interval(path: Path) -> None:
    users = load(path, f"alice:{ALICE}\n", recheck=3600)
    path.unlink()
    assert not users.is_stale()


def test_broken_version_is_logged_once_and_the_old_one_stays(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    users = load(path, f"alice:{ALICE}\n")
    path.write_text(f"alice:{CANARY}\n# another size\n")
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            if users.is_stale():
                users.refresh()
        path.unlink()
        for _ in range(3):
            assert users.is_stale()
            users.refresh()
    assert users.lookup("alice@example.com") == ALICE
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert f"{path}:1: not a password hash" in messages[0]
    assert "No such file" in messages[1]
    assert CANARY not in caplog.text
    path.write_text(f"bob:{BOB}\n")
    assert users.is_stale()
    users.refresh()
    assert users.users() == ["bob@example.com"]


def test_decoys_are_real_hashes_steady_by_name_and_drawn_from_all(path: Path) -> None:
    users = load(path, f"alice:{ALICE}\nbob:{BOB}\ncarol:!\n")
    drawn = {users.decoy(f"nobody{number}") for number in range(200)}
    assert drawn == {ALICE, BOB}
    assert len({users.decoy("nobody") for _ in range(20)}) == 1
    assert load(path, "carol:!\n").decoy("nobody") is None


async def test_known_user_is_decided_here(path: Path, executor: BoundedExecutor) -> None:
    disabled = Rejected(AuthFailure.DISABLED)
    users = load(path, f"alice:{ALICE}\nbob:{ssha512('pw')}\ndave:!\n")
    for decisive in (True, False):
        authenticator = UsersFileAuthenticator(users, executor, decisive=decisive)
        user = "alice@example.com"
        accepted = await authenticator.authenticate(credential("Alice", "U*U***U"), user)
        assert accepted == Accepted(Identity(user, "Alice", Mechanism.PLAIN, proven=True))
        assert await authenticator.authenticate(credential("alice", "wrong"), user) == Rejected()
        assert isinstance(await authenticator.authenticate(credential("bob", "pw"), "bob@example.com"), Accepted)
        assert await authenticator.authenticate(credential("dave", "!"), "dave@example.com") == disabled
        assert await authenticator.authenticate(credential("dave", ""), "dave@example.com") == disabled


async def test_unknown_user_is_rejected_by_the_last_and_passed_on_by_others(
    path: Path, executor: BoundedExecutor
) -> None:
    users = load(path, f"alice:{ALICE}\n")
    last = UsersFileAuthenticator(users, executor, decisive=True)
    # also with the password of the account that lends its hash to the dummy verification
    assert await last.authenticate(credential("eve", "U*U***U"), "eve@example.com") == Rejected()
    first = UsersFileAuthenticator(users, executor, decisive=False)
    assert await first.authenticate(credential("eve", "U*U***U"), "eve@example.com") == Declined()
    empty = UsersFileAuthenticator(load(path, ""), executor, decisive=True)
    assert await empty.authenticate(credential("eve", "x"), "eve@example.com") == Rejected()


async def test_other_credentials_are_declined(path: Path, executor: BoundedExecutor) -> None:
    authenticator = UsersFileAuthenticator(load(path, f"alice:{ALICE}\n"), executor)
    apop = ApopCredential("alice", b"<1@x>", Secret("0" * 32))
    assert await authenticator.authenticate(apop, "alice@example.com") == Declined()


async def test_full_pool_is_not_a_rejection(path: Path) -> None:
    pool = BoundedExecutor("hash", threads=1, queue_limit=0, deadline=60)
    release = threading.Event()
    blocker = asyncio.ensure_future(pool.run(release.wait))
    await asyncio.sleep(0)
    users = load(path, f"alice:{ALICE}\ndave:!\n", recheck=3600)
    authenticator = UsersFileAuthenticator(users, pool, decisive=True)
    for user in ("alice@example.com", "dave@example.com", "eve@example.com"):
        assert isinstance(await authenticator.authenticate(credential("x", "x"), user), CannotTell)
    release.set()
    await blocker
    pool.close()


async def test_hash_that_turns_out_damaged_is_not_a_rejection(path: Path, executor: BoundedExecutor) -> None:
    users = load(path, "alice:$2b$99$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n")
    result = await UsersFileAuthenticator(users, executor).authenticate(credential("a", CANARY), "alice@example.com")
    assert isinstance(result, CannotTell)
    assert "damaged" in result.detail
    assert CANARY not in repr(result)


async def test_new_account_can_log_in_without_restart(path: Path, executor: BoundedExecutor) -> None:
    authenticator = UsersFileAuthenticator(load(path, f"alice:{ALICE}\n"), executor)
    assert await authenticator.authenticate(credential("bob", "hello"), "bob@example.com") == Rejected()
    path.write_text(f"bob:{BOB}\n")
    result = await authenticator.authenticate(credential("bob", "hello"), "bob@example.com")
    assert isinstance(result, Accepted)


@pytest.mark.real
async def test_extract_of_a_shadow_file_moves_over(path: Path, executor: BoundedExecutor) -> None:
    made = subprocess.run(["openssl", "passwd", "-6", "pa:ss"], check=True, capture_output=True, text=True).stdout
    authenticator = UsersFileAuthenticator(load(path, f"alice:{made.strip()}:19700:0:99999:7:::\n"), executor)
    result = await authenticator.authenticate(credential("alice", "pa:ss"), "alice@example.com")
    assert isinstance(result, Accepted)
