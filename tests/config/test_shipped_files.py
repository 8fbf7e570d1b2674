"""The files in config/ load, and the annotated one tells the truth about every key and default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from popproxy.config.fields import all_fields, is_section
from popproxy.config.loader import load_bytes, load_file
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.model_pools import Pool

FOLDER = Path(__file__).parents[2] / "config"
FILES = sorted(FOLDER.rglob("*.yaml"))
GUIDES = sorted((FOLDER / "kerberos").glob("*.md"))
ANNOTATED = FOLDER / "popproxy.yaml"
NEEDS_AN_EXAMPLE = {
    *(
        "listeners",
        "pools",
        "pools.main.servers",
        "tls.certificates",
        "users",
        "vault",
        "scram",
        "external",
        "oauth",
        "rpop",
        "kerberos",
        "directories",
        "tunnels",
    )
}
"""Sections that have no default, or one that would show nothing."""
AS_ELSEWHERE = {"listeners[].certificates[].cert", "listeners[].certificates[].key"} | {
    f"{secret}.{source}"
    for secret in ("tunnels.<name>.passphrase", "shared_state.key", "shared_state.password", "http.token")
    for source in ("file", "env", "credential")
} - {"shared_state.key.file"}
"""Keys that the file explains in another section, and says so."""


_SHOWN_BELOW = {"rules: []"} | {
    f"{key}: null" for key in ("master", "check", "kerberos", "certificate", "xoauth2", "key", "syslog", "socks")
}
"""Defaults with an example behind them that is switched off."""
_NAMED = {"pools", "directories", "directories.<name>.http.headers", "tunnels", "console.operators"}
"""Sections whose keys are names of the administrator's choice."""


def uncommented(text: str) -> str:
    """Settings are commented out as whole blocks: ``#`` at the block's indentation, the block's text behind it."""
    lines = []
    inside = False
    for line in text.splitlines():
        bare = line.lstrip()
        indent = line[: len(line) - len(bare)]
        starts = bool(re.match(r"#[a-z]", bare))
        inside = starts or (inside and bool(re.match(r"#  ", bare)))
        if inside:
            lines.append(indent + bare[1:])
        elif line.strip() not in _SHOWN_BELOW:
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(FOLDER)) for path in FILES])
def test_a_shipped_file_loads_without_errors_or_warnings(path: Path) -> None:
    assert load_file(path).warnings == []


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(FOLDER)) for path in FILES])
def test_a_shipped_file_begins_by_saying_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_the_recipes_are_all_in_the_guide() -> None:
    guide = (FOLDER / "README.md").read_text()
    assert [path.name for path in FILES if path.parent.name == "recipes" and f"recipes/{path.name}" not in guide] == []


@pytest.mark.parametrize("path", GUIDES, ids=[path.stem for path in GUIDES])
def test_the_configurations_in_the_guides_load(path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for text in blocks:
        assert load_bytes(text.encode(), path).warnings == []


def test_links_lead_somewhere() -> None:
    for file in FOLDER.rglob("*.md"):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", file.read_text()):
            linked = (file.parent / target) if target else file
            assert linked.exists(), f"{file.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
                assert anchor[1:] in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    guide = (FOLDER / "README.md").read_text()
    assert [path.name for path in GUIDES if f"kerberos/{path.name}" not in guide] == []


def places(value: Any, place: str = "") -> dict[str, list[Any]]:
    """All values in a tree by the model's name for their place: ``listeners[].tls``, ``pools.<name>.servers``."""
    found: dict[str, list[Any]] = {}
    if isinstance(value, dict):
        for key, inner in value.items():
            inside = "<name>" if place in _NAMED else key
            for where, values in places(inner, f"{place}.{inside}" if place else inside).items():
                found.setdefault(where, []).extend(values)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            for where, values in places(item, f"{place}[]").items():
                found.setdefault(where, []).extend(values)
    found.setdefault(place, []).append(value)
    return found


def test_the_annotated_file_has_every_key_of_the_model_and_no_other() -> None:
    written = places(yaml.safe_load(uncommented(ANNOTATED.read_text())))
    known = {place for place, _ in all_fields()}
    assert known - written.keys() == AS_ELSEWHERE
    assert {place for place in written if place and not place.endswith(("[]", "<name>"))} - known == set()


def test_the_annotated_file_has_the_default_of_every_key() -> None:
    config = load_file(ANNOTATED).config
    wrong = []

    def compare(section: Any, place: str) -> None:
        for name, field in type(section).model_fields.items():
            where = f"{place}.{name}" if place else name
            value = getattr(section, name)
            if field.is_required() or where in NEEDS_AN_EXAMPLE:
                continue
            if is_section(type(value)):
                compare(value, where)
            elif value != field.default:
                wrong.append(where)

    compare(config, "")
    compare(config.listeners[0], "listeners[0]")
    compare(config.pools["main"], "pools.main")
    assert wrong == []


def test_the_annotated_file_writes_out_the_keys_of_its_first_listener_and_pool() -> None:
    written = yaml.safe_load(ANNOTATED.read_text())
    assert list(written["listeners"][0]) == list(Listener.model_fields)
    assert list(written["pools"]["main"]) == list(Pool.model_fields)


def test_every_key_in_the_annotated_file_has_a_comment_above_it() -> None:
    lines = uncommented(ANNOTATED.read_text()).splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r" *(- )?[a-z_]+:", line)]
    second_listener = next(n for n, line in enumerate(lines) if "name: pop3s" in line)
    bare = [lines[n] for n in keys if "#" not in lines[n - 1] and n not in range(second_listener, second_listener + 3)]
    named = r" +(pool: main|backend_user: .*|main:|corp:|shop:|web:|system:|jump:|alice:)"
    assert [line for line in bare if not re.fullmatch(named, line)] == []


def test_what_is_switched_off_in_the_annotated_file_works_when_switched_on() -> None:
    text = uncommented(ANNOTATED.read_text()).replace(
        "authenticate: [passthrough]", "authenticate: [users, corp, shop, web, system, passthrough]"
    )
    text = text.replace("login: [forward]", "login: [forward, stored, master, external, xoauth2]")
    text = text.replace("gssapi: false", "gssapi: true").replace("sasl: []", "sasl: [SCRAM-SHA-256, EXTERNAL, XOAUTH2]")
    text = text.replace("client_ca: null", "client_ca: clients.pem").replace('rpop: "off"', "rpop: rfc")
    text = text.replace("server_tunnels: {}", "server_tunnels: {oldmail.example.com: jump}")
    text = text.replace("servers: [oldmail.example.com]", "servers: [oldmail.example.com, new.example.com]")
    text = text.replace("shared: false", "shared: true")
    loaded = load_bytes(text.encode(), ANNOTATED)
    assert isinstance(loaded.config, Config)
    assert loaded.config.vault is not None
    assert len(loaded.config.routing.rules) == 4
    assert loaded.warnings == []
