"""What the guides say can be done: their configuration loads, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.config.loader import load_file
from tests.cli.helpers import command_line, popproxy

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + [
    *(ROOT / "config").glob("*.md"),
    *(ROOT / "tests").glob("*.md"),
]

_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4}\S.*$", re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:^\s*(?:\$ )?|[|(;&] ?)popproxy ([a-z-]+[^|)<>;&#\n]*)", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def code(text: str) -> Iterator[str]:
    """Everything in `text` that is set as code: fenced, indented, between backquotes."""
    yield from _FENCE.findall(text)
    rest = _FENCE.sub("", text)
    yield from _INDENTED.findall(rest)
    yield from _SPAN.findall(_INDENTED.sub("", rest))


def commands(text: str) -> list[str]:
    """The command lines of popproxy in `text`, without what explains them two blanks behind."""
    found = [re.split(r"\s{2,}", line)[0].strip() for piece in code(text) for line in _COMMAND.findall(piece)]
    return list(dict.fromkeys(found))


def check(line: str) -> None:
    """Fails unless `line` names a command of popproxy and options of that command."""
    command = command_line()
    words = shlex.split(line)
    while words and (inner := getattr(command, "commands", {})):
        assert words[0] in inner, f"popproxy {line}: there is no command {words[0]}"
        command = inner[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("-")}
    arguments = sum(parameter.param_type_name == "argument" for parameter in command.params)
    takes_value = {name for one in command.params if not getattr(one, "is_flag", False) for name in one.opts}
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":
            assert word in options, f"popproxy {line}: there is no option {word}"
            if word in takes_value:
                assert words, f"popproxy {line}: {word} needs a value"
                words.pop(0)
        else:
            arguments -= 1
            assert arguments >= 0, f"popproxy {line}: {word} is too much"


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


ALL_COMMANDS = list(dict.fromkeys(line for path in GUIDES for line in commands(path.read_text())))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_readme_configurations_load_without_a_warning(tmp_path: Path, number: int) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    block = blocks[number]
    assert len(block.splitlines()) <= 16
    file = tmp_path / "popproxy.yaml"
    file.write_text(block)
    assert load_file(file).warnings == []
    shown = popproxy("config", "show", "-c", str(file))
    assert (shown.returncode, shown.stderr) == (0, b"")


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_a_command_in_the_guides_exists(line: str) -> None:
    check(line)


def test_the_guides_name_the_commands_for_every_day() -> None:
    names = " ".join(ALL_COMMANDS)
    assert [name for name in ("serve", "check -c", "config show", "vault init") if name not in names] == []


def test_what_is_to_be_made_has_a_target() -> None:
    rules = re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    pieces = [piece for path in GUIDES for piece in code(path.read_text())]
    named_targets = {target for piece in pieces for target in re.findall(r"^\s*make ([a-z]+)", piece, re.MULTILINE)}
    assert {"demo", "test", "check", "setup"} <= named_targets <= targets


@pytest.mark.parametrize("line", ["sevre", "check --ofline", "config shwo", "vault set alice bob", "check -c"])
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    assert commands(f"    popproxy {line}  says something\n") == [line]
    with pytest.raises(AssertionError, match=f"popproxy {line}"):
        check(line)


@pytest.mark.parametrize("guide", GUIDES, ids=named(GUIDES))
def test_links_of_a_guide_lead_to_files_and_headings_that_exist(guide: Path) -> None:
    text = _FENCE.sub("", guide.read_text())
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = guide.parent / path if path else guide
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(guide: Path) -> set[str]:
    """The names of a guide's headings, as they stand in links."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", guide.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_keeps_to_the_order_of_selling_and_teaching() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert headings == [
        "Two commands",
        "A configuration",
        "What each part does",
        "Beside others",
        "How fast",
        "Operating it",
        "Containers and Kubernetes",
        "Security defaults",
        "How it is tested",
        "Read on",
    ]
