"""What is said to have changed between two configurations, when it takes effect, and what is never shown of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from popproxy.app.effects import EFFECTS, KEPT, Effect, described, effect_of
from popproxy.app.plan import Plan
from popproxy.config.differences import differences
from popproxy.config.finding import dotted
from popproxy.config.loader import load_bytes
from popproxy.config.model import Config

BEFORE = b"""
listeners:
  - {name: pop3, listen: [":110"], tls: none, cleartext_networks: [127.0.0.0/8], banner: one}
  - {name: kept, listen: [":111"], tls: none, cleartext_networks: [127.0.0.0/8]}
  - {name: old, listen: [":112"], tls: none, cleartext_networks: [127.0.0.0/8]}
pools: {main: {servers: [mail.example.com]}, gone: {servers: [b]}}
routing: {default: main}
timeouts: {drain: 30s}
vault: {file: /etc/vault, key: {env: VAULT_SWORDFISH}}
"""
AFTER = b"""
listeners:
  - {name: new, listen: [":113"], tls: none, cleartext_networks: [127.0.0.0/8]}
  - {name: pop3, listen: [":110", ":1110"], tls: stls, cleartext_networks: [127.0.0.0/8], banner: two}
  - {name: kept, listen: [":111"], tls: none, cleartext_networks: [127.0.0.0/8]}
pools: {main: {servers: [other.example.com], tls: none, allow_cleartext: true}}
tls: {certificates: [{cert: /c}]}
timeouts: {drain: 90s}
http: {listen: null}
vault: {file: /etc/vault2, key: {env: VAULT_ROSEBUD}}
workers: auto
"""


def config(raw: bytes) -> Config:
    return load_bytes(raw, Path("popproxy.yaml")).config


def changes(before: bytes, after: bytes) -> dict[str, tuple[object, object] | None]:
    return {dotted(one.key): one.shown for one in differences(config(before), config(after))}


def test_each_changed_key_is_named_once_and_only_harmless_values_are_shown() -> None:
    found = changes(BEFORE, AFTER)
    assert found == {
        "listeners[0]": None,
        "listeners[1].listen": None,
        "listeners[1].tls": ("none", "stls"),
        "listeners[1].banner": None,
        "listeners[2]": None,
        "pools.main.servers": None,
        "pools.main.tls": ("stls", "none"),
        "pools.main.allow_cleartext": (False, True),
        "pools.gone": None,
        "routing.default": None,
        "tls.certificates": None,
        "vault.file": ("/etc/vault", "/etc/vault2"),
        "vault.key.env": None,
        "timeouts.drain": ("30s", "90s"),
        "http.listen": ("127.0.0.1:9110", None),
        "workers": (1, "auto"),
    }
    assert not differences(config(AFTER), config(AFTER))


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("listeners[0].listen", Effect.NOW), ("listeners[12].banner", Effect.NEW_SESSIONS),
        ("listeners[1]", Effect.NEW_SESSIONS), ("timeouts.drain", Effect.NOW), ("timeouts.idle", Effect.NEW_SESSIONS),
        ("pools.main.servers", Effect.NEW_SESSIONS), ("process.user", Effect.RESTART),
        ("process.state_directory", Effect.NEW_SESSIONS), ("control.users", Effect.NOW), ("workers", Effect.NOW),
    ],
)  # fmt: skip
def test_the_nearest_declared_key_says_when_a_change_takes_effect(key: str, effect: Effect) -> None:
    assert effect_of(key) is effect


def test_every_section_is_declared_and_nothing_that_is_none() -> None:
    assert {effect_of(name) for name in Config.model_fields} <= set(Effect)
    assert {key.partition("[")[0].partition(".")[0] for key in EFFECTS} == set(Config.model_fields)
    assert {key for key, effect in EFFECTS.items() if effect is Effect.RESTART} == set(KEPT)
    assert set(KEPT.values()) <= set(Plan.__slots__)
    with pytest.raises(KeyError):
        effect_of("invented.key")


def test_values_are_described_as_they_are_written() -> None:
    assert described({"key": "pools.main.tls"}) == "pools.main.tls"
    assert described({"key": "limits.x", "from": None, "to": True}) == "limits.x: null -> true"
