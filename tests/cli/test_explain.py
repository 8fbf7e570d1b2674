"""``popproxy explain`` as it is typed: what is printed, and the exit codes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from popproxy.cli.exits import ExitCode
from tests.cli.helpers import popproxy, write_config


def config(directory: Path) -> str:
    (directory / "users").write_text("alice:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\nbob:!\n")
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["users"]}
    return str(write_config(directory, users={"file": str(directory / "users")}, listeners=[listener]))


def test_a_listing_for_people(tmp_path: Path) -> None:
    run = popproxy("explain", "alice", "-c", config(tmp_path))
    assert (run.returncode, run.stderr) == (ExitCode.OK, b"")
    lines = run.stdout.decode().splitlines()
    assert lines[0] == "name      + alice is taken for a user: there is no section kerberos"
    assert lines[-1] == "let in at pool main as alice by forward, if the password is accepted"
    marked = [line for line in lines if " line " in line]
    assert len({line.rindex("  line ") for line in marked if len(line) < 100}) == 1, "the line numbers are aligned"
    assert any(line.startswith("password  + users: the hash in the users file decides") for line in lines)
    assert run.stdout.isascii()


def test_a_refused_user(tmp_path: Path) -> None:
    run = popproxy("explain", "bob", "-c", config(tmp_path))
    assert run.returncode == ExitCode.NOUSER
    assert run.stdout.decode().splitlines()[-1] == "refused: disabled in the users file"


def test_json(tmp_path: Path) -> None:
    path = config(tmp_path)
    run = popproxy("explain", "alice", "--json", "-c", path)
    report = json.loads(run.stdout)
    assert (report["kind"], report["listener"], report["mailbox"]) == ("user", "pop3", "alice")
    assert (report["pool"], report["backend_user"], report["strategy"]) == ("main", "alice", "forward")
    assert report["verdict"] == "let in"
    (password,) = [step for step in report["steps"] if step["stage"] == "password"]
    assert password["outcome"] == "done"
    file, _, line = password["where"].rpartition(":")
    assert file == path
    assert '"users"' in Path(path).read_text().splitlines()[int(line) - 1]
    run = popproxy("explain", "bob", "--json", "-c", path)
    assert run.returncode == ExitCode.NOUSER
    assert json.loads(run.stdout)["verdict"] == "refused"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["alice", "--listener", "nix"], ExitCode.USAGE, "there is no listener nix; there are pop3"),
        ([], ExitCode.USAGE, "Missing argument"),
        (["alice", "-c", "/nonexistent.yaml"], ExitCode.CONFIG, "there is no such file"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], code: ExitCode, text: str) -> None:
    path = config(tmp_path)
    run = popproxy("explain", *arguments, *([] if "-c" in arguments else ["-c", path]))
    assert run.returncode == code
    assert text in run.stderr.decode()
    assert run.stdout == b""


def test_a_configuration_that_leaves_no_way(tmp_path: Path) -> None:
    pools = {
        "main": {
            "servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["master"],
            "master": {"user": "m*", "password": {"env": "M"}},
        }
    }  # fmt: skip
    (tmp_path / "users").write_text("a*b:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\n")
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["users"]}
    path = write_config(tmp_path, pools=pools, users={"file": str(tmp_path / "users")}, listeners=[listener])
    run = popproxy("explain", "a*b", "-c", str(path))
    assert run.returncode == ExitCode.CONFIG
    assert run.stdout.decode().endswith("not set up: no way to log in at the pool main\n")


@pytest.mark.long
def test_directories_are_asked_only_if_they_are_to_be(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "places.db")) as database:
        database.executescript("""
            CREATE TABLE places (login text, server text, backend_user text);
            INSERT INTO places VALUES ('alice', '127.0.0.1:2', 'al'), ('bob', '192.0.2.9', NULL);
        """)
    pools = {
        name: {"servers": [f"127.0.0.1:{port}"], "tls": "none", "allow_cleartext": True}
        for name, port in (("main", 1), ("second", 2))
    }
    query = "SELECT server, backend_user FROM places WHERE login = :user"
    directories = {"shop": {"sql": {"url": f"sqlite:{tmp_path / 'places.db'}", "query": query}}}
    routing = {"default": "main", "directories": ["shop"]}
    path = str(write_config(tmp_path, pools=pools, directories=directories, routing=routing))

    def said(user: str, *more: str) -> tuple[str, str, str]:
        found = json.loads(popproxy("explain", user, "-c", path, "--json", *more).stdout)
        route = [step["text"] for step in found["steps"] if step["stage"] == "route"]
        return found["verdict"], f"{found['pool']} {found['backend_user']}", route[0]

    assert said("alice") == ("let in", "main alice", said("alice")[2])
    assert said("alice", "--ask") == ("let in", "second al", "shop: server '127.0.0.1:2', there 'al'")
    assert said("carol", "--ask") == ("let in", "main carol", "shop: nothing about where the mail is, so rules decide")
    assert said("bob", "--ask")[::2] == ("not set up", "shop: server '192.0.2.9'")
    (tmp_path / "places.db").unlink()
    verdict, _, why = said("alice", "--ask")
    assert verdict == "refused"
    assert "[SYS/TEMP]" in why
