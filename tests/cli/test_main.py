"""The program as a whole: help, exit codes, errors, pipes."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from popproxy import __version__
from popproxy.cli.exits import CommandError, ExitCode, explain
from popproxy.cli.main import main
from popproxy.errors import AuditError, BackendError, ConfigError, Problem, Unavailable, VaultError
from tests.cli.helpers import CANARY, PROGRAM, command_line, popproxy, process, type_at, write_config

COMMANDS = [
    "serve",
    "check",
    "explain",
    "demo",
    "config schema",
    "config show",
    "hash-password",
    "version",
    *(f"vault {c}" for c in ("init", "set", "list", "remove", "import", "rekey")),
]


def test_version() -> None:
    run = process("version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"popproxy {__version__}\n".encode(), b"")
    assert popproxy("--version").stdout == run.stdout
    assert json.loads(popproxy("version", "--json").stdout)["popproxy"] == __version__


def test_version_loads_no_heavy_module() -> None:
    script = "import sys; from popproxy.cli import main; main(['version']); print(*sys.modules)"
    loaded = subprocess.run([PROGRAM[0], "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ssl", "yaml", "aiohttp", "cryptography", "structlog", "uvloop", "popproxy.config.model"} & set(loaded)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    run = popproxy(*command.split(), "--help")
    assert run.returncode == 0
    assert f"popproxy {command}" in run.stdout.decode().partition("For example")[2]


def examples(command: str) -> list[str]:
    """The lines below "For example" in the source of the command's help."""
    found = command_line()
    for word in command.split():
        found = found.commands[word]
    text = inspect.cleandoc(found.callback.__doc__).partition("For example:\n")[2]
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_copied_at_80_columns(command: str) -> None:
    assert examples(command)
    shown = process(*command.split(), "--help", env={"COLUMNS": "80"}).stdout.decode()
    on_terminal = re.sub(r"\x1b\[[\d;]*m", "", type_at([*command.split(), "--help"])[1])
    for output in (shown, on_terminal):
        lines = [line.strip() for line in output.splitlines()]
        assert [line for line in examples(command) if line not in lines] == []


def test_help_is_plain_text_in_a_pipe() -> None:
    output = popproxy("--help").stdout
    assert output.isascii()
    assert b"\x1b" not in output


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["serve", "--nonsense"], ["vault", "set"], ["demo", "--pop3-port", "65536"], []]
)
def test_wrong_usage_is_64(arguments: list[str]) -> None:
    assert popproxy(*arguments).returncode == ExitCode.USAGE


def test_passwords_are_not_taken_as_arguments() -> None:
    for command in ("hash-password", "vault set alice"):
        assert popproxy(*command.split(), CANARY).returncode == ExitCode.USAGE


def test_every_problem_of_a_configuration_is_one_line_on_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("listeners:\n  - {name: a, listen: [':110'], tsl: stls}\npools:\n  main: {servers: []}\n")
    run = process("serve", "-c", str(path))
    lines = run.stderr.decode().splitlines()
    assert run.returncode == ExitCode.CONFIG
    assert run.stdout == b""
    assert len(lines) >= 2
    assert all(line.startswith(f"popproxy: {path}:") for line in lines)
    assert any("tsl" in line and ":2:" in line for line in lines)
    assert any("servers" in line and ":4:" in line for line in lines)


def test_missing_configuration_is_78() -> None:
    run = process("serve", "-c", "/nonexistent/popproxy.yaml")
    assert run.returncode == ExitCode.CONFIG
    assert b"/nonexistent/popproxy.yaml" in run.stderr


def test_configuration_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPPROXY_CONFIG", str(write_config(tmp_path)))
    run = popproxy("config", "show")
    assert run.returncode == 0, run.stderr


def test_config_schema_is_json() -> None:
    assert "listeners" in json.loads(popproxy("config", "schema").stdout)["properties"]


def test_config_show(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    everything = yaml.safe_load(popproxy("config", "show", "-c", config).stdout)
    changed = yaml.safe_load(popproxy("config", "show", "--changed", "-c", config).stdout)
    as_json = json.loads(popproxy("config", "show", "--json", "-c", config).stdout)
    assert everything == as_json
    assert everything["timeouts"]["idle"] == "10m"
    assert "timeouts" not in changed
    assert changed["pools"]["main"]["servers"] == ["127.0.0.1:9"]


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([*PROGRAM, "config", "schema"], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert run.stderr == b""
    assert run.returncode in (0, 1)


def test_bug_is_one_line_without_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        secret = CANARY
        raise ValueError(f"cannot use {secret}")

    monkeypatch.delenv("POPPROXY_TRACEBACK", raising=False)
    monkeypatch.setattr("popproxy.config.schema.json_schema", broken)
    assert main(["config", "schema"]) == ExitCode.SOFTWARE
    captured = capsys.readouterr()
    assert CANARY not in captured.out + captured.err
    assert re.fullmatch(r"popproxy: internal error: ValueError at \S+:\d+; .*level: debug.*\n", captured.err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError([Problem("a:1", "b", "c")]), 78),
        (CommandError("no", ExitCode.DATAERR), 65),
        (VaultError("wrong key"), 78),
        (AuditError("full"), 74),
        (Unavailable("busy"), 69),
        (BackendError("down", "connect", "refused"), 69),
        (PermissionError(13, "Permission denied", "/x"), 77),
        (FileExistsError(17, "File exists", "/x"), 73),
        (FileNotFoundError(2, "No such file", "/x"), 66),
        (OSError(5, "Input/output error"), 74),
        (KeyError("x"), 70),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert explain(error)[0] == code


def test_completion_can_be_shown() -> None:
    run = process("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert run.returncode == 0
    assert b"complete -o default -F" in run.stdout
