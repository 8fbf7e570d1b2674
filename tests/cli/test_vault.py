"""``popproxy vault`` as an administrator uses it."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popproxy.auth.hashes import verify
from popproxy.cli.exits import ExitCode
from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.cli.helpers import CANARY, popproxy, write_config

pytestmark = pytest.mark.long


def config_with(directory: Path, vault: Path, key: Path, **sections: Any) -> str:
    pool = {"servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["stored", "forward"]}
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "apop": True}
    section = {"file": str(vault), "key": {"file": str(key)}}
    return str(write_config(directory, listeners=[listener], pools={"main": pool}, vault=section, **sections))


@pytest.fixture
def config(tmp_path: Path) -> str:
    return config_with(tmp_path, tmp_path / "vault", tmp_path / "vault.key")


@pytest.fixture
def vault(config: str) -> str:
    run = popproxy("vault", "init", "-c", config)
    assert run.returncode == 0, run.stderr
    return config


def secret_of(config: str, user: str) -> bytes | None:
    directory = Path(config).parent
    found = Vault.open(directory / "vault", Secret((directory / "vault.key").read_bytes().strip())).get(user)
    return None if found is None else found.reveal()


def users(config: str) -> list[str]:
    found: list[str] = json.loads(popproxy("vault", "list", "--json", "-c", config).stdout)["users"]
    return found


def test_init_makes_vault_and_key_for_the_owner_only(vault: str) -> None:
    for name in ("vault", "vault.key"):
        assert stat.S_IMODE((Path(vault).parent / name).stat().st_mode) == 0o600
    assert users(vault) == []


def test_vault_belongs_to_the_service_and_its_key_does_not(vault: str) -> None:
    service = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    assert (Path(vault).parent / "vault").stat().st_uid == service
    assert (Path(vault).parent / "vault.key").stat().st_uid == os.geteuid()


def test_init_keeps_what_is_there(vault: str) -> None:
    popproxy("vault", "set", "alice", "--stdin", "-c", vault, stdin=b"x\n")
    assert popproxy("vault", "init", "-c", vault).returncode == ExitCode.CANTCREAT
    assert users(vault) == ["alice"]


@pytest.mark.parametrize("missing", [("vaults",), ("keys",), ("vaults", "keys")])
def test_init_without_a_directory_names_the_cure_and_does_nothing(tmp_path: Path, missing: tuple[str, ...]) -> None:
    vault, key = tmp_path / "vaults" / "vault", tmp_path / "keys" / "vault.key"
    owner = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    config = config_with(tmp_path, vault, key, process={"user": owner})
    for directory in {"vaults", "keys"} - {*missing}:
        (tmp_path / directory).mkdir()
    run = popproxy("vault", "init", "-c", config)
    assert (run.returncode, run.stdout) == (ExitCode.CANTCREAT, b"")
    cures = [line.partition("make it: ")[2] for line in run.stderr.decode().splitlines()]
    assert cures == [f"install -d -m 750 -o {owner} {tmp_path / name}" for name in missing]
    assert not vault.exists()
    assert not key.exists()
    for cure in cures:
        subprocess.run(cure.split(), check=True)
    run = popproxy("vault", "init", "-c", config)
    assert run.returncode == 0, run.stderr
    assert run.stdout.decode().splitlines()[0].startswith(f"key:   {key} ")


def test_init_that_cannot_make_the_vault_leaves_no_key(tmp_path: Path) -> None:
    name = "v" * 250  # the file beside it, under which it is written first, has too long a name
    run = popproxy("vault", "init", "-c", config_with(tmp_path, tmp_path / name, tmp_path / "vault.key"))
    assert run.returncode != 0
    assert run.stdout == b""
    assert b"too long" in run.stderr
    assert not (tmp_path / "vault.key").exists()


def test_set_list_remove(vault: str) -> None:
    run = popproxy("vault", "set", "Alice", "--stdin", "-c", vault, stdin=f"{CANARY} with space \n".encode())
    assert run.returncode == 0, run.stderr
    assert CANARY.encode() not in run.stdout + run.stderr
    assert secret_of(vault, "alice") == f"{CANARY} with space ".encode()
    assert popproxy("vault", "list", "-c", vault).stdout == b"alice  password scram\n"
    assert CANARY.encode() not in (Path(vault).parent / "vault").read_bytes()
    assert popproxy("vault", "remove", "ALICE", "-c", vault).returncode == 0
    assert users(vault) == []
    run = popproxy("vault", "remove", "alice", "-c", vault)
    assert run.returncode == ExitCode.NOINPUT
    assert b"alice" in run.stderr


def test_import_takes_all_lines_or_none(vault: str, tmp_path: Path) -> None:
    run = popproxy("vault", "import", "-", "-c", vault, stdin=f"alice:{CANARY}\n# a comment\nbob:with:colon\n".encode())
    assert run.returncode == 0, run.stderr
    assert secret_of(vault, "alice") == CANARY.encode()
    assert secret_of(vault, "bob") == b"with:colon"
    lines = tmp_path / "lines"
    lines.write_text(f"carol:{CANARY}\nno colon {CANARY}\ndora:\n")
    run = popproxy("vault", "import", str(lines), "-c", vault)
    assert run.returncode == ExitCode.DATAERR
    assert f"{lines}:2".encode() in run.stderr
    assert f"{lines}:3".encode() in run.stderr
    assert CANARY.encode() not in run.stderr
    assert users(vault) == ["alice", "bob"]


def kinds(config: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(popproxy("vault", "list", "--json", "-c", config).stdout)["kinds"]
    return found


def test_what_is_kept_may_be_less_than_the_password(vault: str) -> None:
    for kind in ("scram", "rpop"):
        run = popproxy("vault", "set", "alice", "--kind", kind, "--stdin", "-c", vault, stdin=CANARY.encode())
        assert (run.returncode, run.stdout) == (0, b"alice: set\n"), run.stderr
    assert kinds(vault) == {"alice": ["scram", "rpop"]}
    assert secret_of(vault, "alice") is None
    directory = Path(vault).parent
    record = Vault.open(directory / "vault", Secret((directory / "vault.key").read_bytes().strip())).record("alice")
    assert all(verifier.matches(CANARY.encode()) for verifier in record.verifiers.values())
    assert record.rpop is not None
    assert verify(CANARY.encode(), record.rpop.reveal().decode())
    assert popproxy("vault", "remove", "alice", "--kind", "scram", "-c", vault).returncode == 0
    assert kinds(vault) == {"alice": ["rpop"]}
    run = popproxy("vault", "remove", "alice", "--kind", "password", "-c", vault)
    assert run.returncode == ExitCode.NOINPUT
    assert b"alice has no password in the vault" in run.stderr


def test_import_may_keep_verifiers_only(vault: str) -> None:
    run = popproxy("vault", "import", "--kind", "scram", "-", "-c", vault, stdin=f"alice:{CANARY}\n".encode())
    assert (run.returncode, run.stdout) == (0, b"1 secret imported\n"), run.stderr
    assert kinds(vault) == {"alice": ["scram"]}
    run = popproxy("vault", "import", "--kind", "scram", "-", "-c", vault, stdin=f"bob:{CANARY}\ue000\n".encode())
    assert run.returncode == ExitCode.DATAERR
    assert b"-:1: the password has characters that SCRAM does not allow" in run.stderr
    assert CANARY.encode() not in run.stderr
    assert users(vault) == ["alice"]


def test_rekey_keeps_the_secrets_and_retires_the_old_key(vault: str, tmp_path: Path) -> None:
    popproxy("vault", "set", "alice", "--stdin", "-c", vault, stdin=b"kept\n")
    before = (tmp_path / "vault.key").read_bytes()
    run = popproxy("vault", "rekey", "-c", vault)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "vault.key").read_bytes() != before
    assert not (tmp_path / "vault.key.new").exists()
    assert secret_of(vault, "alice") == b"kept"
    (tmp_path / "vault.key").write_bytes(before)
    assert popproxy("vault", "list", "-c", vault).returncode == ExitCode.CONFIG


def test_passwords_and_tokens_for_the_servers_behind(vault: str) -> None:
    """They prove nobody here, and go their own ways."""
    popproxy("vault", "set", "alice", "--stdin", "-c", vault, stdin=b"own\n")
    for kind in ("backend", "refresh-token"):
        run = popproxy(
            "vault", "set", "alice", "--kind", kind, "--stdin", "-c", vault, stdin=f"{CANARY}-{kind}".encode()
        )
        assert (run.returncode, run.stdout) == (0, b"alice: set\n"), run.stderr
    run = popproxy("vault", "import", "--kind", "backend", "-", "-c", vault, stdin=b"bob:behind\nalice:behind\n")
    assert (run.returncode, run.stdout) == (0, b"2 passwords imported\n"), run.stderr
    assert kinds(vault) == {"alice": ["password", "scram", "backend", "refresh-token"], "bob": ["backend"]}
    assert secret_of(vault, "alice") == b"own"
    assert secret_of(vault, "bob") is None
    run = popproxy("vault", "set", "bob", "--kind", "refresh-token", "--stdin", "-c", vault, stdin=b"two words")
    assert run.returncode == ExitCode.CONFIG
    assert b"refresh token" in run.stderr
    assert popproxy("vault", "remove", "alice", "--kind", "refresh-token", "-c", vault).returncode == 0
    assert popproxy("vault", "remove", "bob", "-c", vault).returncode == 0
    assert kinds(vault) == {"alice": ["password", "scram", "backend"]}


_KILLED_AT = """
import os, sys
step = int(sys.argv.pop(1))
def dying(function):
    def call(*arguments, **options):
        global step
        step -= 1
        if not step:
            os._exit(9)
        return function(*arguments, **options)
    return call
for name in ("link", "rename", "unlink", "fsync", "fchmod"):
    setattr(os, name, dying(getattr(os, name)))
from popproxy.cli import main
main()
"""


@pytest.mark.long
def test_rekey_may_be_killed_at_any_step(vault: str, tmp_path: Path) -> None:
    """The vault opens after each, and the next rekey tidies up."""
    popproxy("vault", "set", "alice", "--stdin", "-c", vault, stdin=b"kept\n")
    for step in range(1, 100):
        run = subprocess.run(
            [sys.executable, "-c", _KILLED_AT, str(step), "vault", "rekey", "-c", vault],
            capture_output=True,
            check=False,
        )
        assert users(vault) == ["alice"], f"killed at step {step}"
        if run.returncode == 0:
            break
        assert run.returncode == 9, run.stderr
        if step % 3 == 0:
            assert popproxy("vault", "rekey", "-c", vault).returncode == 0
            assert secret_of(vault, "alice") == b"kept"
    assert step > 10
    assert secret_of(vault, "alice") == b"kept"
    assert popproxy("vault", "rekey", "-c", vault).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir() if "vault" in path.name) == ["vault", "vault.key"]


def test_rekey_that_broke_off_is_finished(vault: str, tmp_path: Path) -> None:
    """Everybody finds the key meanwhile."""
    popproxy("vault", "set", "alice", "--stdin", "-c", vault, stdin=b"kept\n")
    key = tmp_path / "vault.key"
    old = key.read_bytes()
    assert popproxy("vault", "rekey", "-c", vault).returncode == 0
    key.rename(tmp_path / "vault.key.new")
    key.write_bytes(old)
    key.chmod(0o600)
    assert users(vault) == ["alice"]
    run = popproxy("vault", "rekey", "-c", vault)
    assert run.returncode == 0, run.stderr
    assert b"an earlier rekey is finished" in run.stdout
    assert not (tmp_path / "vault.key.new").exists()
    assert secret_of(vault, "alice") == b"kept"


def test_rekey_does_nothing_if_no_key_opens_the_vault(vault: str, tmp_path: Path) -> None:
    for name in ("vault.key", "vault.key.new"):
        (tmp_path / name).write_text(generate_key())
        (tmp_path / name).chmod(0o600)
    before = (tmp_path / "vault").read_bytes()
    run = popproxy("vault", "rekey", "-c", vault)
    assert run.returncode == ExitCode.CONFIG
    assert b"opens neither with" in run.stderr
    assert (tmp_path / "vault.key.new").exists()
    assert (tmp_path / "vault").read_bytes() == before


def test_wrong_key_is_78_and_named(vault: str, tmp_path: Path) -> None:
    (tmp_path / "vault.key").write_text(generate_key())
    run = popproxy("vault", "list", "-c", vault)
    assert run.returncode == ExitCode.CONFIG
    assert b"vault" in run.stderr
    assert b"Traceback" not in run.stderr


def test_configuration_without_vault_is_78(tmp_path: Path) -> None:
    run = popproxy("vault", "list", "-c", str(write_config(tmp_path)))
    assert run.returncode == ExitCode.CONFIG
    assert b"section vault" in run.stderr
