"""Secrets are fetched from where the configuration says, and only if nobody else can read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from popproxy.config.secret import resolve_secret
from popproxy.config.secret_source import SecretSource
from popproxy.errors import ConfigError, Problem


def secret_file(folder: Path, value: bytes = b"CANARY\n", mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(value)
    path.chmod(mode)
    return path


def refusal(source: SecretSource) -> Problem:
    with pytest.raises(ConfigError) as caught:
        resolve_secret(source)
    (problem,) = caught.value.problems
    assert "CANARY" not in str(problem)
    return problem


@pytest.mark.parametrize(
    ("written", "secret"),
    [(b"a b\n", b"a b"), (b"a\r\n", b"a"), (b"a\n\n", b"a\n"), (b"a", b"a"), (b" \xff ", b" \xff ")],
)
def test_a_file_holds_the_secret_and_one_line_end_is_dropped(tmp_path: Path, written: bytes, secret: bytes) -> None:
    assert resolve_secret(SecretSource(file=secret_file(tmp_path, written))).reveal() == secret


def test_an_environment_variable_holds_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPPROXY_TEST_KEY", "CANARY")
    assert resolve_secret(SecretSource(env="POPPROXY_TEST_KEY")).reveal() == b"CANARY"


def test_a_systemd_credential_holds_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret_file(tmp_path, mode=0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert resolve_secret(SecretSource(credential="key")).reveal() == b"CANARY"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o660, 0o666, 0o601])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, mode=mode)
    problem = refusal(SecretSource(file=path))
    assert problem.where == str(path)
    assert problem.key == "vault.key.file"
    assert problem.cure == f"run: chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_only_its_owner_can_open_is_accepted(tmp_path: Path, mode: int) -> None:
    assert resolve_secret(SecretSource(file=secret_file(tmp_path, mode=mode)))


@pytest.mark.parametrize(("mode", "accepted"), [(0o440, True), (0o640, True), (0o660, False), (0o444, False)])
def test_a_file_of_another_owner_may_be_readable_by_the_group(tmp_path: Path, mode: int, accepted: bool) -> None:
    assert os.geteuid() == 0, "only root can give files away: run the tests as root"
    path = secret_file(tmp_path, mode=mode)
    os.chown(path, 65534, os.getegid())
    if accepted:
        assert resolve_secret(SecretSource(file=path)).reveal() == b"CANARY"
    else:
        assert "chmod 600" in refusal(SecretSource(file=path)).cure


@pytest.mark.parametrize("value", [b"", b"\n", b"\r\n"])
def test_an_empty_file_is_refused(tmp_path: Path, value: bytes) -> None:
    assert refusal(SecretSource(file=secret_file(tmp_path, value))).what == "the file is empty"


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(SecretSource(file=tmp_path / "nothing")).what == "there is no such file"
    assert refusal(SecretSource(file=tmp_path)).what == "cannot be read: Is a directory"
    assert refusal(SecretSource(file=tmp_path / "pipe")).what == "is not a regular file"
    assert refusal(SecretSource(file=Path("/dev/zero"))).what == "is not a regular file"


def test_a_variable_that_is_not_set_or_empty_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POPPROXY_TEST_KEY", raising=False)
    assert "is not set" in refusal(SecretSource(env="POPPROXY_TEST_KEY")).what
    monkeypatch.setenv("POPPROXY_TEST_KEY", "")
    assert "is empty" in refusal(SecretSource(env="POPPROXY_TEST_KEY")).what


def test_a_credential_without_systemd_or_outside_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "LoadCredential=key:" in refusal(SecretSource(credential="key")).cure
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert refusal(SecretSource(credential="../key")).what == "is not the name of a credential"
