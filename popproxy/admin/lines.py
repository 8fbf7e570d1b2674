"""A line that an operator types, as a command with its arguments: as at the command line of the proxy's own machine."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from popproxy.admin.commands import Command, Known, Role, takes_bool
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.config.units import parse_duration

LONGEST = 4096
"""Characters of a line."""


@dataclass(frozen=True, slots=True)
class Line:
    """What was meant. `json`: the answer is for a program."""

    name: str
    arguments: dict[str, object]
    json: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """How a command is typed where its parameters do not say it. `options`: the parameter behind an option's word."""

    words: Callable[[list[str]], dict[str, object]] | None = None
    shown: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    durations: frozenset[str] = frozenset()


def is_network(text: str) -> bool:
    """Is it an address or a network?"""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def selection(which: str) -> dict[str, object]:
    """A session, an address or network, or a user, as ``who`` and ``kick`` want it."""
    if is_network(which):
        return {"network": which}
    return {"session" if re.fullmatch("[0-9a-f]{16}", which) else "user": which}


def _one_at_most(words: list[str]) -> dict[str, object]:
    if len(words) > 1:
        raise CommandFailed(Reason.BAD_ARGUMENTS, "one at a time: a user, an address, a network or a session")
    return selection(words[0]) if words else {}


def _penalised(words: list[str]) -> dict[str, object]:
    return {("network" if is_network(word) else "user"): word for word in words}


_FORMS = {
    "who": Form(_one_at_most, "[WHICH]", {"--all": "everything"}),
    "kick": Form(_one_at_most, "WHICH"),
    "penalties list": Form(None, "", {"--all": "everything"}),
    "penalties clear": Form(_penalised, "[WHO]", {"--all": "everybody", "--from": "network"}),
    "top": Form(None, "", {"--every": "seconds"}, frozenset({"seconds"})),
    "hold": Form(None, "", {"--for": "seconds"}, frozenset({"seconds"})),
    "trace": Form(None, "", {"--for": "seconds"}, frozenset({"seconds"})),
}
_NO_FORM = Form()


def parse_line(text: str, commands: Known) -> Line:
    """Raises CommandFailed, with a text that says what would be right."""
    if len(text) > LONGEST:  # to take it apart would keep the sessions waiting
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"a line of more than {LONGEST} characters")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"{error}".lower()) from None
    known = set(commands)
    name = next((found for count in (3, 2, 1) if (found := " ".join(words[:count])) in known), None)
    if name is None:
        raise CommandFailed(Reason.UNKNOWN_COMMAND, f"no such command; there are {', '.join(commands)}")
    command = commands.find(name)
    form = _FORMS.get(name, _NO_FORM)
    options = options_of(command)
    arguments: dict[str, object] = {}
    plain: list[str] = []
    json = False
    rest = words[len(name.split()) :]
    while rest:
        word = rest.pop(0)
        option, equals, given = word.partition("=")
        if option == "--json":
            json = True
        elif option in options:
            key = options[option]
            wanted = command.types[key]
            if takes_bool(wanted) and not equals:
                arguments[key] = True
                continue
            if not equals and not rest:
                raise CommandFailed(Reason.BAD_ARGUMENTS, f"{option} needs a value")
            arguments[key] = _value(option, given if equals else rest.pop(0), wanted, key in form.durations)
        elif word.startswith("--"):
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"{name} has no option {option}; usage: {usage(command)}")
        else:
            plain.append(word)
    if form.words is not None:
        arguments = {**form.words(plain), **arguments}
    else:
        if len(plain) > len(command.required):
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"too many words; usage: {usage(command)}")
        arguments |= zip(command.required, plain, strict=False)
    if missing := [key for key in command.required if key not in arguments]:
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"{missing[0]} is missing; usage: {usage(command)}")
    return Line(name, arguments, json)


def options_of(command: Command) -> dict[str, str]:
    """The options that can be typed, and the parameters that they stand for."""
    form = _FORMS.get(command.name, _NO_FORM)
    renamed = set(form.options.values())
    hidden = {"user", "network", "session"} if form.words is not None else set()
    plain = {
        f"--{key.replace('_', '-')}": key
        for key in command.types
        if key not in command.required and key not in renamed | hidden and key != "return"
    }
    return {**form.options, **plain}


def usage(command: Command) -> str:
    """``backends drain SERVER [--pool POOL] [--json]``."""
    form = _FORMS.get(command.name, _NO_FORM)
    words = [form.shown] if form.words is not None else [key.upper() for key in command.required]
    options = [
        f"[{option}]"
        if takes_bool(command.types[key])
        else f"[{option} {'TIME' if key in form.durations else key.upper()}]"
        for option, key in options_of(command).items()
    ]
    return " ".join([command.name, *filter(None, words), *options, "[--json]"])


def completions(text: str, commands: Known, role: Role) -> list[str]:
    """What the last word of `text` can become, of the words that `role` may use."""
    before, _, last = text.rpartition(" ")
    typed = before.split()
    allowed = [name for name in commands if role.may(commands.find(name).role)]
    for count in (3, 2, 1):
        name = " ".join(typed[:count])
        if len(typed) >= count and name in allowed:
            command = commands.find(name)
            return sorted(option for option in (*options_of(command), "--json") if option.startswith(last))
    paths = [[*name.split()] for name in (*allowed, "help", "exit")]
    fitting = {path[len(typed)] for path in paths if path[: len(typed)] == typed and len(path) > len(typed)}
    return sorted(word for word in fitting if word.startswith(last))


def _value(option: str, text: str, wanted: Any, is_duration: bool) -> object:
    kinds = getattr(wanted, "__args__", (wanted,))
    try:
        if is_duration:
            return parse_duration(text)
        if str in kinds:
            return text
        return int(text) if int in kinds and text.lstrip("-").isdigit() else float(text)
    except ValueError as error:
        why = str(error) if is_duration else f"{text!r} is not a number"
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"{option}: {why}") from None
