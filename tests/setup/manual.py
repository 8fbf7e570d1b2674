"""Writes the manual pages popproxy(1) and popproxy.yaml(5) from what the program itself says: make man.

python tests/setup/manual.py DIRECTORY
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from popproxy import __version__
from popproxy.cli.exits import ExitCode
from popproxy.cli.main import make_app
from popproxy.config.model_abuse import DEFAULT_SOCKET
from popproxy.config.schema import json_schema

DATED = "2026-11-23"
"""When this version of the pages was begun: a page must have a date, and the day of each build would tell nothing."""

MEANINGS = {
    ExitCode.OK: "All is well.",
    ExitCode.USAGE: "The command was called wrongly.",
    ExitCode.DATAERR: "What was given in cannot be used.",
    ExitCode.NOINPUT: "A file, or what was named, does not exist.",
    ExitCode.NOUSER: "A user would be refused.",
    ExitCode.UNAVAILABLE: "Something that is needed does not answer.",
    ExitCode.SOFTWARE: "A bug of popproxy's.",
    ExitCode.CANTCREAT: "A file is there already.",
    ExitCode.IOERR: "Reading or writing has failed.",
    ExitCode.NOPERM: "This user may not.",
    ExitCode.CONFIG: "The configuration, or the environment, is wrong.",
}


def main() -> None:
    """Write both pages into the directory that is named."""
    directory = Path(sys.argv[1])
    for name, text in pages().items():
        (directory / name).write_text(text)


def pages() -> dict[str, str]:
    """The pages by their file names."""
    return {
        "popproxy.1": "\n".join(command_page()) + "\n",
        "popproxy.yaml.5": "\n".join(file_page(json_schema())) + "\n",
    }


# ---- popproxy(1) ----


def command_page() -> Iterator[str]:
    """Every command with its help."""
    app = typer.main.get_command(make_app())
    yield from _head("POPPROXY", 1, "popproxy", "an authenticating, auditing POP3 proxy")
    yield from (".SH SYNOPSIS", r".B popproxy", r".I COMMAND", r"[\fIOPTION\fR]... [\fIARGUMENT\fR]...")
    yield ".SH DESCRIPTION"
    yield from _prose(app.help or "")
    yield ".SH COMMANDS"
    found = list(_commands("popproxy", app))
    for name, command in found:
        yield from _command(name, command)
    yield ".SH EXIT STATUS"
    for code in ExitCode:
        yield from (".TP", f".B {code.value}", _text(MEANINGS[code]))
    yield ".SH ENVIRONMENT"
    variables = {str(p.envvar): p for _, c in found for p in c.params if p.envvar}
    for variable, option in sorted(variables.items()):
        yield from (".TP", f".B {_text(variable)}", _text(f"As the option {option.opts[0]}: {option.help}"))
    yield ".SH FILES"
    for path, what in (
        ("/etc/popproxy/popproxy.yaml", "The configuration, see popproxy.yaml(5)."),
        (str(DEFAULT_SOCKET), "The control socket of the running popproxy, unless the configuration names another."),
    ):
        yield from (".TP", f".I {_text(path)}", _text(what))
    yield from (".SH SEE ALSO", ".BR popproxy.yaml (5),", ".BR systemd.service (5)")


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Those that do something, by their whole names. typer has its own click, whose classes are not to be had."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {word}", inner)
    if not hasattr(command, "commands") and not command.hidden:
        yield name, command


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = " ".join(_shown(p) for p in command.params if p.param_type_name == "argument")
    options = [p for p in command.params if p.param_type_name == "option"]
    yield f".SS {_text(' '.join(part for part in (name, '[OPTION]...' if options else '', arguments) if part))}"
    yield from _prose(command.help or "")
    for option in options:
        names = ", ".join(rf"\fB{_text(word)}\fR" for word in (*option.opts, *option.secondary_opts))
        value = "" if option.is_flag else rf" \fI{_text(_shown(option))}\fR"
        yield from (".TP", names + value, _text(option.help or ""))


def _shown(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


# ---- popproxy.yaml(5) ----


def file_page(schema: dict[str, Any]) -> Iterator[str]:
    """Every key of the configuration with its default."""
    yield from _head("POPPROXY.YAML", 5, "popproxy.yaml", "configuration of popproxy")
    yield from (".SH SYNOPSIS", ".I /etc/popproxy/popproxy.yaml", ".SH DESCRIPTION")
    yield _text(
        "One file of YAML. Durations are a number and a unit (500ms, 30s, 10m, 1h, 2d), sizes too (64KiB); files that "
        "do not begin with / start at the folder of the configuration. In what follows [] stands for each entry of a "
        "list, and NAME for a name of your choice. popproxy check says of a file what is wrong and what would be right."
    )
    for name, what in schema["properties"].items():
        yield f".SH {_text(name.upper())}"
        yield from _key(name, what, schema["$defs"], frozenset())


def _key(path: str, what: dict[str, Any], sections: dict[str, Any], seen: frozenset[str]) -> Iterator[str]:
    """A key, and those below it."""
    yield from (".TP", rf"\fB{_text(path)}\fR{_values(what)}")
    yield _text(str(what.get("description", "")) or "See below.")
    for suffix, reference in _inner(what):
        section = sections[reference]
        if reference in seen:
            continue
        for name, inner in section.get("properties", {}).items():
            yield from _key(f"{path}{suffix}.{name}", inner, sections, seen | {reference})


def _inner(what: Any, suffix: str = "") -> Iterator[tuple[str, str]]:
    """The sections that can stand at a key, and how one gets there."""
    if "$ref" in what:
        yield suffix, what["$ref"].rpartition("/")[2]
    for one in (*what.get("anyOf", ()), *what.get("allOf", ()), *what.get("oneOf", ())):
        yield from _inner(one, suffix)
    if isinstance(what.get("items"), dict):
        yield from _inner(what["items"], f"{suffix}[]")
    for one in (*what.get("patternProperties", {}).values(), what.get("additionalProperties")):
        if isinstance(one, dict):
            yield from _inner(one, f"{suffix}.NAME")


def _values(what: dict[str, Any]) -> str:
    """What may stand there, as far as it is a closed set, and the default."""
    words = [str(word) for word in what.get("enum", ())]
    parts = [" | ".join(words)] if words else []
    if "default" in what:
        parts.append("default: " + json.dumps(what["default"], ensure_ascii=False).strip('"'))
    return _text(f" ({'; '.join(parts)})") if parts else ""


# ---- roff ----


def _head(title: str, section: int, name: str, what: str) -> Iterator[str]:
    yield r".\" Made by make man from what popproxy says itself; do not edit."
    yield f'.TH {title} {section} {DATED} "popproxy {__version__}"'
    yield from (".nh", ".ad l", ".SH NAME", rf"{name} \- {_text(what)}")


def _prose(text: str) -> Iterator[str]:
    """Paragraphs; what is indented stands as it is."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text.replace("\b\n", "")).strip())):
        if paragraph.startswith("    "):
            lines = [_text(line.removeprefix("    ")) for line in paragraph.splitlines()]
            yield from (".PP", ".RS 4", ".nf", *lines, ".fi", ".RE")
        else:
            if number:
                yield ".PP"
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Text that troff takes as it is."""
    escaped = (
        " ".join(text.splitlines()).replace("\\", r"\e").replace("-", r"\-").replace("^", r"\(ha").replace("~", r"\(ti")
    )
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    main()
