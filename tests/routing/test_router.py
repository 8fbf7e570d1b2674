"""Which pool, and which name there: rules, templates that expand nothing, and file maps that survive bad edits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.auth.names import canonical
from popproxy.directories.placeholders import fields_of
from popproxy.errors import ConfigError
from popproxy.routing.route_file import RouteFile
from popproxy.routing.router import Misplaced, Router
from popproxy.routing.template import compile_template
from popproxy.types import Address, Location
from tests.session.rig import configuration, loaded


def router(directory: Path, *rules: dict[str, Any], **routing: Any) -> Router:
    """A router with pools main and other."""
    sections = configuration(
        directory,
        "127.0.0.1:1",
        more_pools={"other": {"servers": ["127.0.0.1:2"], "tls": "none", "allow_cleartext": True}},
        routing={"rules": list(rules), **routing},
    )
    return Router(loaded(directory, sections).config, lambda name: canonical(name, None, "fold"))


def found(made: Router, user: str) -> tuple[str, str] | None:
    route = made.find(user)
    return None if route is None else (route.pool, route.backend_user)


@given(st.text(min_size=1))
def test_user_is_filled_in_once_and_as_it_is(user: str) -> None:
    fill = compile_template("<{user}|{local}|{domain}>")
    local, at, domain = user.rpartition("@")
    expected = f"<{user}|{local}|{domain}>" if at else f"<{user}|{user}|>"
    assert fill(fields_of(user), None) == expected


@pytest.mark.parametrize("user", ["{domain}", "{user}", "\\1", "\\g<name>", "{0}", "%s", "{{user}}", "${HOME}"])
def test_user_that_looks_like_a_template_is_not_expanded(tmp_path: Path, user: str) -> None:
    made = router(tmp_path, {"regex": "(?P<name>.*)", "pool": "main", "backend_user": "x-\\1-\\g<name>-{user}"})
    assert found(made, user) == ("main", f"x-{user}-{user}-{user}")


def test_first_rule_that_matches_decides(tmp_path: Path) -> None:
    made = router(
        tmp_path,
        {"user": "Alice@Example.com", "pool": "other", "backend_user": "boss"},
        {"regex": r"(\w+)\.(\w+)@example\.com", "pool": "other", "backend_user": "\\2_\\1"},
        {"domain": "EXAMPLE.com", "pool": "main", "backend_user": "{local}"},
        default="other",
    )
    assert found(made, "alice@example.com") == ("other", "boss")
    assert found(made, "ada.lovelace@example.com") == ("other", "lovelace_ada")
    assert found(made, "bob@example.com") == ("main", "bob")
    assert found(made, "bob@example.com.evil") == ("other", "bob@example.com.evil")
    assert found(made, "ada.lovelace@example.com\n") == ("other", "ada.lovelace@example.com\n")
    assert found(made, "example.com") == ("other", "example.com")


def test_group_that_took_no_part_is_empty(tmp_path: Path) -> None:
    made = router(tmp_path, {"regex": r"(\w+)(-\w+)?", "pool": "main", "backend_user": "\\1[\\2]"})
    assert found(made, "alice") == ("main", "alice[]")


def test_without_a_default_others_have_no_route(tmp_path: Path) -> None:
    made = router(tmp_path, {"domain": "example.com", "pool": "main"})
    assert found(made, "bob@example.org") is None
    assert found(made, "bob") is None


def test_file_map(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("# a comment\nAlice other boss\nbob\ncarol main # theirs\n\n")
    made = router(tmp_path, {"file": str(tmp_path / "map"), "pool": "main", "backend_user": "{local}-x"})
    assert found(made, "alice") == ("other", "boss")
    assert found(made, "bob") == ("main", "bob-x")
    assert found(made, "carol") == ("main", "carol-x")
    assert found(made, "dave") is None


def test_file_map_is_read_again_and_a_broken_version_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("alice main\n")
    made = RouteFile(path, None, str.lower, frozenset({"main", "other"}))

    def edit(text: str | bytes | None) -> None:
        if text is None:
            path.unlink()
        else:
            (tmp_path / "new").write_bytes(text.encode() if isinstance(text, str) else text)
            os.replace(tmp_path / "new", path)
        made._file._next_look = 0.0

    def pool(user: str) -> str | None:
        entry = made.find(user)
        return None if entry is None else entry.pool

    edit("alice other\n")
    assert pool("alice") == "other"
    for broken in ("alice nowhere\n", "alice\n", "alice other\nalice main\n", "a b c d\n", b"\xff\n", None):
        edit(broken)
        assert pool("alice") == "other"
    edit("bob main\n")
    assert pool("alice") is None
    assert pool("bob") == "main"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice nowhere\n", "there is no pool nowhere"),
        ("x main\nalice\n", "no pool for alice"),
        ("alice main\nALICE other\n", "alice stands here twice"),
        ("a main b c\n", "4 words"),
    ],
)
def test_bad_file_is_refused_at_the_start_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(ConfigError, match=rf"map:{text.count(chr(10))}.*{says}"):
        RouteFile(tmp_path / "map", None, str.lower, frozenset({"main", "other"}))


def test_missing_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        RouteFile(tmp_path / "map", None, str.lower, frozenset({"main"}))


def placed(made: Router, location: Location) -> tuple[str, str] | None:
    route = made.find("alice@example.com", location)
    return None if route is None else (route.pool, route.backend_user)


def test_where_a_directory_says_goes_before_the_rules(tmp_path: Path) -> None:
    made = router(tmp_path, {"user": "alice@example.com", "pool": "main", "backend_user": "boss"}, default="main")
    assert placed(made, Location(pool="other")) == ("other", "alice@example.com")
    assert placed(made, Location(pool="other", backend_user="al")) == ("other", "al")
    assert placed(made, Location(server=Address("127.0.0.1", 2))) == ("other", "alice@example.com")
    assert placed(made, Location(server=Address("127.0.0.1", 0))) == ("main", "alice@example.com")


def test_a_directory_that_names_no_place_leaves_it_to_the_rules(tmp_path: Path) -> None:
    made = router(tmp_path, {"user": "alice@example.com", "pool": "other", "backend_user": "boss"}, default="main")
    assert placed(made, Location()) == ("other", "boss")
    assert placed(made, Location(backend_user="al")) == ("other", "al")


@pytest.mark.parametrize(
    "location",
    [
        Location(pool="elsewhere"),
        Location(server=Address("mail.example.com", 110)),
        Location(server=Address("127.0.0.1", 3)),
        Location(pool="main", server=Address("127.0.0.1", 2)),
    ],
)
def test_a_place_that_is_not_configured_is_no_place_and_no_rule_replaces_it(tmp_path: Path, location: Location) -> None:
    with pytest.raises(Misplaced):
        placed(router(tmp_path, {"domain": "example.com", "pool": "main"}, default="main"), location)
