"""pydantic's findings, told to an administrator: what is wrong, and what would be right, on one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic_core import ErrorDetails

from popproxy.config.fields import field_at, homes, is_section, type_at
from popproxy.config.finding import KeyPath
from popproxy.config.model import Config
from popproxy.config.model_listeners import BANNER_PATTERN
from popproxy.config.patterns import NAME_PATTERN
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import quote

_WORDS_FOR_VALUES = {
    "starttls": "stls", "start_tls": "stls starttls", "stls": "starttls", "ldaps": "implicit", "ssl": "implicit",
    "tls": "implicit", "pop3s": "implicit", "plain": "none",
    "cleartext": "none", "off": "none no", "false": "none no", "disabled": "none", "on": "stls yes", "true": "stls yes",
    "warn": "warning", "err": "error", "critical": "error", "notice": "info", "text": "console", "tlsv1.2": "1.2",
    "tlsv1.3": "1.3", "1.0": "1.2", "1.1": "1.2", "pass-through": "passthrough", "proxy": "passthrough",
    "backend": "passthrough", "file": "users", "password": "forward", "passthrough": "forward", "vault": "stored",
    "lower": "fold", "fail": "closed", "continue": "open",
}  # fmt: skip
_WORDS_FOR_KEYS = {
    "port": ("listen",), "ports": ("listen",), "bind": ("listen",), "address": ("listen", "servers"),
    "host": ("servers",), "hosts": ("servers",), "backend": ("pools", "servers", "pool"),
    "backends": ("pools", "servers"), "upstream": ("pools",), "upstreams": ("pools",),
    "ssl": ("tls",), "starttls": ("tls",), "certificate": ("cert", "certificates"),
    "chain": ("cert",), "private_key": ("key",), "metrics": ("http",), "log": ("logging",), "auth": ("authentication",),
    "path": ("file",), "trusted_proxies": ("proxy_protocol",), "ca_file": ("ca",), "greeting": ("banner",),
    "username": ("user",), "environment": ("env",), "server": ("listeners", "servers"), "insecure": ("verify",),
}  # fmt: skip

Told = tuple[str, str]


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `known` that `word` was most probably meant to be."""
    by_folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), by_folded, n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else None


def tell(error: ErrorDetails, path: KeyPath) -> Told:
    """What is wrong and the cure, for pydantic's `error` at `path`."""
    told = _TELLERS.get(error["type"])
    if told is not None:
        return told(error, path)
    return str(error["msg"])[0].lower() + str(error["msg"])[1:], "see config/popproxy.yaml for what may stand here"


def _missing(error: ErrorDetails, path: KeyPath) -> Told:
    return "is missing", f"add it, for example {path[-1]}: {_flow(_example(path))}"


def _unknown(error: ErrorDetails, path: KeyPath) -> Told:
    key = str(path[-1])
    section = type_at(path[:-1]) or Config
    known = list(section.model_fields)
    if type_at(path[:-1]) is SecretSource and key in {"value", "secret", "key", "password"}:
        return (
            "a secret may not stand in this file",
            "write it to a file of its own and name that: {file: /etc/popproxy/vault.key}",
        )
    meant = next((word for word in _WORDS_FOR_KEYS.get(key.lower(), ()) if word in known), None) or nearest(key, known)
    elsewhere = _homes_of(key) or _homes_of(_elsewhere_meant(key) if meant is None else "")
    if meant and elsewhere:
        return "is not a key here", f"did you mean {meant}? ({key} belongs {elsewhere})"
    if meant:
        return "is not a known key", f"did you mean {meant}?"
    if elsewhere:
        moved = key if key in homes() else _elsewhere_meant(key)
        return "is not a key here", f"{moved} belongs {elsewhere}"
    return "is not a known key", f"remove it; {'keys here' if len(path) > 1 else 'sections'} are {', '.join(known)}"


def _elsewhere_meant(key: str) -> str:
    words = _WORDS_FOR_KEYS.get(key.lower())
    return words[0] if words else nearest(key, homes(), 0.8) or ""


def _homes_of(key: str) -> str:
    sections = homes().get(key, ())
    return " or ".join(f"in {section}" if section else "at the start of a line" for section in sections[:3])


def _literal(error: ErrorDetails, path: KeyPath) -> Told:
    allowed = [str(value) for value in get_args(type_at(path))]
    value = error["input"]
    choices = f"write one of {', '.join(allowed)}"
    if not isinstance(value, str):
        return _empty_or_not_text(value), choices
    hints = _WORDS_FOR_VALUES.get(value.strip().lower(), "").split()
    meant = next((hint for hint in hints if hint in allowed), None) or nearest(value.strip(), allowed)
    return f"{quote(value)} is not known here", f"{choices}" + (f"; did you mean {meant}?" if meant else "")


def _not_a_list(error: ErrorDetails, path: KeyPath) -> Told:
    value = error["input"]
    item = get_args(type_at(path))[-1] if get_origin(type_at(path)) is list else None
    if isinstance(value, str) and not is_section(item):
        return "must be a list", f"write {_flow([part.strip() for part in value.split(',')])}"
    if isinstance(value, dict):
        return "must be a list, but is a section", 'begin each of its entries with "- "'
    return f"must be a list, but {_kind(value)}", f"write for example {_flow(_example(path) or [])}"


def _not_a_section(error: ErrorDetails, path: KeyPath) -> Told:
    kind = type_at(path)
    value = error["input"]
    if kind is SecretSource:
        return "a secret may not stand in this file", "name its place, for example {file: /etc/popproxy/vault.key}"
    if get_origin(kind) is dict:
        return f"must be a section of names, but {_kind(value)}", f"write for example {_flow(_example(path))}"
    keys = list(kind.model_fields) if is_section(kind) else []
    if isinstance(value, str) and keys:
        first = next((name for name, field in kind.model_fields.items() if field.is_required()), keys[0])
        return (
            f"must be a section, but {_kind(value)}",
            f"write for example {{{first}: ...}}; its keys are {', '.join(keys)}",
        )
    return f"must be a section, but {_kind(value)}", f"write its keys indented below it: {', '.join(keys)}"


def _not_text(error: ErrorDetails, path: KeyPath) -> Told:
    example = _example(path)
    return _empty_or_not_text(
        error["input"]
    ), f"write {f'for example {example}' if example else 'one text'} or remove the line"


def _empty_or_not_text(value: Any) -> str:
    return "has no value" if value is None else f"must be one value, but {_kind(value)}"


def _not_a_number(error: ErrorDetails, path: KeyPath) -> Told:
    default = _default(path)
    example = default if default is not None else 1
    if error["input"] is None or isinstance(error["input"], list | dict):
        return _empty_or_not_text(error["input"]), f"write a whole number, for example {example}"
    return f"{quote(error['input'])} is not a whole number", f"write for example {example}, without a unit"


def _not_a_boolean(error: ErrorDetails, path: KeyPath) -> Told:
    default = "true" if _default(path) else "false"
    if error["input"] is None or isinstance(error["input"], list | dict):
        return _empty_or_not_text(error["input"]), f"write true or false (the default is {default})"
    return f"{quote(error['input'])} is neither true nor false", f"write true or false (the default is {default})"


def _out_of_range(error: ErrorDetails, path: KeyPath) -> Told:
    metadata = field.metadata if (field := field_at(path)) else []
    lowest = next((item.ge for item in metadata if hasattr(item, "ge")), None)
    highest = next((item.le for item in metadata if hasattr(item, "le")), None)
    span = f"a number from {lowest} to {highest}" if highest is not None else f"{lowest} or more"
    size = "small" if error["type"].startswith("greater") else "large"
    return f"{quote(error['input'])} is too {size}", f"write {span}"


def _pattern(error: ErrorDetails, path: KeyPath) -> Told:
    pattern, value = error.get("ctx", {}).get("pattern"), str(error["input"])
    if pattern == NAME_PATTERN:
        close = re.sub(r"[^a-z0-9_.-]+", "-", value.lower()).strip("-_.")[:62]
        rule = "write lower-case letters, digits, - _ and ., up to 63 of them"
        return f"{quote(value)} cannot be a name", f"{rule}, for example {close or 'main'}"
    if pattern == BANNER_PATTERN:
        return (
            "has characters that a greeting may not have",
            "write printable ASCII without < and >, for example POP3 ready",
        )
    return f"{quote(value)} has a wrong form", f"it must match {pattern}"


def _length(error: ErrorDetails, path: KeyPath) -> Told:
    context = error.get("ctx", {})
    if "max_length" in context:
        return f"has {len(error['input'])} characters", f"write {context['max_length']} or fewer"
    if isinstance(error["input"], str):
        return "is empty", "write a text or remove the line"
    return "is empty", f"write at least one entry, for example {_flow(_example(path))}"


def _told_by_us(error: ErrorDetails, path: KeyPath) -> Told:
    if error["input"] is None:
        return "has no value", f"write for example {_flow(_example(path))} or remove the line"
    if isinstance(error["input"], list | dict) and not is_section(type_at(path)):
        return f"must be one value, but {_kind(error['input'])}", f"write for example {_flow(_example(path))}"
    what, _, cure = str(error.get("ctx", {}).get("error", error["msg"])).partition("; ")
    return what, cure or "see config/popproxy.yaml for what may stand here"


def _kind(value: Any) -> str:
    if value is None:
        return "has no value"
    return (
        "is a list" if isinstance(value, list) else "is a section" if isinstance(value, dict) else f"is {quote(value)}"
    )


def _default(path: KeyPath) -> Any:
    field = field_at(path)
    return None if field is None or field.is_required() else field.default


def _example(path: KeyPath) -> Any:
    """An example of what may stand at `path`: the field's, its default, or one for its kind of entry."""
    field = field_at(path)
    if field is None and len(path) > 1 and isinstance(path[-1], int):
        outer = _example(path[:-1])
        return outer[0] if isinstance(outer, list) and outer else None
    if field is None:
        return None
    if field.examples:
        return field.examples[0]
    if field.is_required() or field.default is None:
        return {"pool": "main", "listen": "127.0.0.1:9110"}.get(str(path[-1]))
    if isinstance(field.default, float):
        return "30s"
    return field.default or {"cleartext_networks": ["192.0.2.0/24"], "proxy_protocol": ["192.0.2.0/24"]}.get(
        str(path[-1])
    )


def _flow(value: Any) -> str:
    """`value` as one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = "..." if value is None else str(value)
    return f'"{text}"' if text.startswith(":") else quote(text, 200)[1:-1] if len(text) < 200 else quote(text)


_TELLERS: dict[str, Callable[[ErrorDetails, KeyPath], Told]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "literal_error": _literal,
    "list_type": _not_a_list,
    "dict_type": _not_a_section,
    "model_type": _not_a_section,
    "model_attributes_type": _not_a_section,
    "string_type": _not_text,
    "path_type": _not_text,
    "int_type": _not_a_number,
    "int_parsing": _not_a_number,
    "int_parsing_size": _not_a_number,
    "int_from_float": _not_a_number,
    "bool_type": _not_a_boolean,
    "bool_parsing": _not_a_boolean,
    "greater_than_equal": _out_of_range,
    "less_than_equal": _out_of_range,
    "string_pattern_mismatch": _pattern,
    "string_too_long": _length,
    "string_too_short": _length,
    "too_short": _length,
    "value_error": _told_by_us,
}
