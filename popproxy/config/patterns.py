"""Values with a form of their own: regular expressions, URLs, days."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from popproxy.config.units import quote

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
"""Of listeners, pools and whatever else has a name: labels in logs and metrics."""


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, ValueError, RecursionError) as error:  # the others of {99999999999} and ((((((((
        what = str(error) if isinstance(error, re.error) else "it counts too far, or is nested too deep"
        raise ValueError(
            f"is not a regular expression: {what}; correct it, and put a backslash before characters meant literally"
        ) from None
    return value


def check_https_url(value: str) -> str:
    """`value`, if it is a URL with https, in printable ASCII and without a password. Raises ValueError."""
    try:
        parts = urlsplit(value)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_right = urlsplit(""), False
    if not (parts.hostname and port_is_right) or parts.fragment or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{quote(value)} is not a URL; write for example https://login.example.com/keys")
    if parts.scheme != "https":
        raise ValueError(f"{quote(value)} is not protected by TLS; write a URL that begins with https://")
    if parts.username is not None:
        raise ValueError("holds a user or a password; write the URL without them")
    return value


def parse_day(value: Any) -> date:
    """``2027-06-30``. Raises ValueError."""
    if isinstance(value, date):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        try:
            return date.fromisoformat(text)
        except ValueError as error:
            raise ValueError(f"{quote(text)} is no day: {error}; write for example 2027-06-30") from None
    raise ValueError(f"{quote(value)} is not a day; write year, month and day, for example 2027-06-30")


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Regex = Annotated[str, AfterValidator(_compiles)]
HttpsUrl = Annotated[str, AfterValidator(check_https_url)]
Day = Annotated[
    date,
    BeforeValidator(parse_day),
    PlainSerializer(date.isoformat, return_type=str),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2027-06-30"]}),
]
