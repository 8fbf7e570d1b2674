"""What `show` writes loads again to the same configuration, and tells no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from popproxy.config.loader import load_bytes, load_file
from popproxy.config.model import Config
from popproxy.config.show import show

FOLDER = Path(__file__).parents[2] / "config"
FILES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_what_is_shown_loads_to_an_equal_configuration(path: Path, changed: bool) -> None:
    config = load_file(path).config
    again = load_bytes(show(config, changed).encode(), Path("/elsewhere/popproxy.yaml"))
    assert again.config == config


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
BANNERS = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<>"), max_size=40)


@given(NAMES, BANNERS, st.integers(600_000, 10_000_000), st.sampled_from(["yes", "no", "auto"]))
def test_any_text_survives_being_shown(user: str, banner: str, idle: int, pipelining: str) -> None:
    config = Config.model_validate(
        {
            "listeners": [{"name": "pop3", "listen": [":110"], "banner": banner, "certificates": [{"cert": "/c"}]}],
            "pools": {"main": {"servers": ["a"], "pipelining": pipelining}},
            "process": {"user": user},
            "timeouts": {"idle": idle / 1000},
        }
    )
    assert load_bytes(show(config, changed=True).encode(), Path("p")).config == config


def test_only_what_differs_is_shown_if_asked() -> None:
    raw = b"listeners: [{name: a, listen: [':110'], tls: stls}]\n"
    raw += b"pools: {m: {servers: [b]}}\ntls: {certificates: [{cert: /c}]}\n"
    shown = yaml.safe_load(
        show(load_bytes(raw + b"timeouts: {idle: 20m, login: 60s}\n", Path("p")).config, changed=True)
    )
    assert shown == {
        "listeners": [{"name": "a", "listen": [":110"]}],
        "pools": {"m": {"servers": ["b"]}},
        "tls": {"certificates": [{"cert": "/c"}]},
        "timeouts": {"idle": "20m"},
    }


def test_units_and_servers_are_shown_as_people_write_them() -> None:
    shown = show(load_file(FOLDER / "minimal.yaml").config)
    assert "login: 1m\n" in shown
    assert "flush: 50ms\n" in shown
    assert "- oldmail.example.com\n" in shown


def test_a_password_in_a_url_is_masked() -> None:
    config = load_file(FOLDER / "minimal.yaml").config
    with_url = config.model_copy(
        update={"process": config.process.model_copy(update={"user": "ldap://cn=a:CANARY@host/"})}
    )
    assert "CANARY" not in show(with_url)
    assert "ldap://****@host/" in show(with_url)
