"""The vault as its users see it: what comes back, what is noticed, who may edit at the same time."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popproxy.errors import VaultError
from popproxy.types import Secret
from popproxy.vault import files
from popproxy.vault.files import exclusive
from popproxy.vault.format import generate_key
from popproxy.vault.record import Kind, Record
from popproxy.vault.store import Vault

KEY = Secret(generate_key())
CANARY = "canary-5ecret"

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
values = st.binary(min_size=1, max_size=200).map(
    lambda octets: bytes(octet for octet in octets if 0x20 <= octet != 0x7F) or b"x"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def vault(path: Path) -> Vault:
    return Vault.create(path, KEY, recheck=0)


def contents(vault: Vault) -> dict[str, bytes]:
    found = {}
    for user in vault.users():
        secret = vault.get(user)
        assert secret is not None
        found[user] = secret.reveal()
    return found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, st.none() | values), max_size=12))
def test_vault_holds_what_a_dictionary_holds(tmp_path: Path, edits: list[tuple[str, bytes | None]]) -> None:
    path = tmp_path / "vault"
    path.unlink(missing_ok=True)
    vault, model = Vault.create(path, KEY), dict[str, bytes]()
    for user, value in edits:
        if value is None:
            assert vault.remove(user) == (model.pop(user, None) is not None)
        else:
            vault.set(user, Secret(value))
            model[user] = value
    assert contents(vault) == model
    again = Vault.open(path, KEY)
    assert contents(again) == model
    new_key = Secret(generate_key())
    again.rekey(new_key)
    assert contents(again) == contents(Vault.open(path, new_key)) == model


def test_nothing_secret_in_the_file_and_nothing_to_guess_a_length_from(vault: Vault, path: Path) -> None:
    vault.set("alice", Secret(CANARY))
    vault.set("bob", Secret("x"))
    _, alice, bob, _ = path.read_text().splitlines()
    assert CANARY not in path.read_text()
    assert len(alice) - len("alice") == len(bob) - len("bob")


def test_new_vault_is_private_and_replaces_nothing(path: Path) -> None:
    Vault.create(path, KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(VaultError, match="there is a file already"):
        Vault.create(path, KEY)
    assert os.listdir(path.parent) == ["vault"]


def test_edit_keeps_owner_group_and_a_mode_that_lets_the_group_read(vault: Vault, path: Path) -> None:
    path.chmod(0o646)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    vault.set("alice", Secret("x"))
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert os.listdir(path.parent) == ["vault"]


def test_edit_follows_a_symbolic_link(vault: Vault, path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to("vault")
    Vault.open(link, KEY).set("alice", Secret("x"))
    assert link.is_symlink()
    assert vault.users() == ["alice"]


def test_edit_changes_only_the_lines_it_must(vault: Vault, path: Path) -> None:
    for user in ("alice", "bob", "carol"):
        vault.set(user, Secret("x"))
    before = path.read_text().splitlines()
    vault.set("bob", Secret("y"))
    after = path.read_text().splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True, False]


def test_wrong_key_is_told_from_damage(vault: Vault, path: Path) -> None:
    with pytest.raises(VaultError, match=r"vault:1: this vault is locked with key [0-9a-f]{16}.*check vault\.key"):
        Vault.open(path, Secret(generate_key()))


@pytest.mark.parametrize("key", ["", "short", CANARY, "A" * 43, "A" * 44 + "====", "\xff" * 44])
def test_what_is_no_key_is_refused_with_the_cure(path: Path, key: str) -> None:
    with pytest.raises(VaultError, match="32 octets in base64; make one with popproxy vault init") as refused:
        Vault.create(path, Secret(key))
    assert not path.exists()
    assert CANARY not in str(refused.value)


def test_missing_vault_tells_how_to_make_one(path: Path) -> None:
    with pytest.raises(VaultError, match=r"No such file.*popproxy vault init"):
        Vault.open(path, KEY)


@pytest.mark.parametrize(
    ("user", "secret"),
    [("", CANARY), ("a\nb", CANARY), ("a" * 256, CANARY), ("a\udc80", CANARY), ("a", ""), ("a", CANARY + "\r\n")],
)
def test_what_pop3_cannot_carry_is_not_stored(vault: Vault, user: str, secret: str) -> None:
    with pytest.raises(VaultError) as refused:
        vault.set(user, Secret(secret))
    assert CANARY not in f"{refused.value}{refused.value!r}"
    assert vault.users() == []


def test_import_is_all_or_nothing_and_tells_every_line(vault: Vault) -> None:
    lines = ["# comment\n", "\n", f"alice: {CANARY}: with colon \n", "BOB:b\r\n"]
    assert vault.import_lines(lines, canonical=str.lower) == 2
    assert contents(vault) == {"alice": f" {CANARY}: with colon ".encode(), "bob": b"b"}
    bad = ["carol:x", CANARY, "dave:", f":{CANARY}", f"CAROL:{CANARY}", f"a\x00:{CANARY}"]
    with pytest.raises(VaultError) as refused:
        vault.import_lines(bad, canonical=str.lower, source="secrets.txt")
    told = str(refused.value).splitlines()
    assert [line.split(": ")[0] for line in told] == [f"secrets.txt:{number}" for number in (2, 3, 4, 5, 6)]
    assert CANARY not in str(refused.value)
    assert vault.users() == ["alice", "bob"]
    assert vault.import_lines([]) == 0


def test_edits_of_others_are_seen(vault: Vault, path: Path) -> None:
    other = Vault.open(path, KEY)
    other.set("alice", Secret("one"))
    assert contents(vault) == {"alice": b"one"}
    vault.set("bob", Secret("two"))
    other.set("carol", Secret("three"))
    assert contents(vault) == {"alice": b"one", "bob": b"two", "carol": b"three"}


def test_damaged_new_version_is_logged_once_and_the_old_one_stays(
    vault: Vault, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault.set("alice", Secret(CANARY))
    good = path.read_bytes()
    path.write_bytes(good[:-10])
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert contents(vault) == {"alice": CANARY.encode()}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path}:3: the file ends too early" in caplog.text
    with pytest.raises(VaultError, match="ends too early"):
        vault.set("bob", Secret("x"))
    assert path.read_bytes() == good[:-10]
    path.write_bytes(good)
    vault.set("bob", Secret("x"))
    assert CANARY not in caplog.text


def test_running_process_does_not_go_back_to_an_older_version(
    vault: Vault, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault.set("alice", Secret("old"))
    old = path.read_bytes()
    vault.set("alice", Secret("new"))
    copy = path.with_name("copy")
    copy.write_bytes(old)
    os.replace(copy, path)
    assert contents(vault) == {"alice": b"new"}
    assert "older than the one in use" in caplog.text
    assert contents(Vault.open(path, KEY)) == {"alice": b"old"}


def test_rekey_by_another_process_leaves_this_one_its_old_version(vault: Vault, path: Path) -> None:
    vault.set("alice", Secret("x"))
    new_key = Secret(generate_key())
    Vault.open(path, KEY).rekey(new_key)
    assert contents(vault) == {"alice": b"x"}
    with pytest.raises(VaultError, match=r"it has a new key.*restart popproxy"):
        vault.set("bob", Secret("y"))
    assert contents(Vault.open(path, new_key)) == {"alice": b"x"}


def test_process_that_can_read_the_new_key_goes_on_with_it(path: Path) -> None:
    keys = [Secret(generate_key())]
    vault = Vault.create(path, KEY, recheck=0)
    follower = Vault.open(path, KEY, recheck=0, newer_keys=lambda: keys)
    keys.append(Secret(generate_key()))
    vault.rekey(keys[1])
    vault.set("alice", Secret("behind the new key"))
    assert contents(follower) == {"alice": b"behind the new key"}
    follower.set("bob", Secret("y"))
    assert contents(Vault.open(path, keys[1])) == {"alice": b"behind the new key", "bob": b"y"}


def test_editors_at_the_same_time_lose_nothing(vault: Vault, path: Path) -> None:
    program = """
import sys
from pathlib import Path
from popproxy.types import Secret
from popproxy.vault.record import Kind, Record
from popproxy.vault.store import Vault
vault = Vault.open(Path(sys.argv[1]), Secret(sys.stdin.read()))
for number in range(15):
    vault.set(f"user-{sys.argv[2]}-{number}", Secret(sys.argv[2]))
"""
    editors = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(editor)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for editor in range(3)
    ]
    for editor in editors:
        assert editor.stdin is not None
        editor.stdin.write(KEY.reveal().decode())
        editor.stdin.close()
        editor.stdin = None
    for editor in editors:
        _, complaints = editor.communicate(timeout=60)
        assert (editor.returncode, complaints) == (0, "")
    assert len(vault.users()) == 45
    assert vault.revision == 45


def test_lock_that_is_never_released_is_an_error_and_not_a_hang(path: Path) -> None:
    Vault.create(path, KEY)
    with exclusive(path), pytest.raises(VaultError, match="another editor"), exclusive(path, patience=0.1):
        pass


def test_lock_of_a_file_that_was_replaced_meanwhile_does_not_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("old")
    locked: list[int] = []
    try_lock = files._try_lock

    def replaced_just_before(descriptor: int) -> bool:
        if not locked:
            new = path.with_name("new")
            new.write_text("new")
            os.replace(new, path)
        locked.append(os.fstat(descriptor).st_ino)
        return try_lock(descriptor)

    monkeypatch.setattr(files, "_try_lock", replaced_just_before)
    with exclusive(path):
        assert locked[-1] == path.stat().st_ino
    assert len(locked) == 2


def test_failed_write_leaves_the_old_file_and_no_rubbish(vault: Vault, path: Path) -> None:
    vault.set("alice", Secret("x"))
    before = path.read_bytes()
    program = """
import resource, signal, sys
from pathlib import Path
from popproxy.errors import VaultError
from popproxy.types import Secret
from popproxy.vault.record import Kind, Record
from popproxy.vault.store import Vault
vault = Vault.open(Path(sys.argv[1]), Secret(sys.stdin.read()))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    vault.set("bob", Secret("y"))
except VaultError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        input=KEY.reveal().decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "File too large" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["vault"]


def test_records_of_all_kinds(vault: Vault, path: Path) -> None:
    vault.set("alice", Secret(CANARY))
    vault.change({"alice": lambda record: record.with_rpop(Secret("hash")), "bob": _only_verifiers})
    assert {user: record.kinds for user, record in Vault.open(path, KEY).records()} == {
        "alice": [Kind.PASSWORD, Kind.SCRAM, Kind.RPOP],
        "bob": [Kind.SCRAM],
    }
    assert vault.get("bob") is None
    assert vault.record("nobody") == Record()
    assert vault.remove("alice", Kind.RPOP)
    assert not vault.remove("alice", Kind.RPOP)
    assert vault.remove("alice", Kind.PASSWORD)
    assert vault.users() == ["bob"]


def test_a_new_password_keeps_the_rpop_id(vault: Vault) -> None:
    vault.change({"alice": lambda record: record.with_rpop(Secret("hash"))})
    vault.set("alice", Secret("x"))
    vault.import_lines(["alice:y"])
    assert vault.record("alice").rpop == Secret("hash")
    assert vault.get("alice") == Secret("y")


def test_an_edit_that_fails_changes_nothing(vault: Vault) -> None:
    vault.set("alice", Secret("x"))
    revision = vault.revision
    with pytest.raises(VaultError):
        vault.change({"alice": _only_verifiers, "bob": lambda record: record.with_password(Secret("a\n"))})
    with pytest.raises(VaultError):
        vault.change({"b\nob": _only_verifiers})
    assert (vault.revision, vault.users(), vault.get("alice")) == (revision, ["alice"], Secret("x"))


def _only_verifiers(record: Record) -> Record:
    return record.with_verifiers(Secret(CANARY))
