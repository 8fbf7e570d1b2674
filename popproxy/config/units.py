"""Values with units, as they are written in the configuration file: ``30s``, ``10m``, ``64KiB``, ``mail.example.com:110``."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from popproxy.types import Address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_OCTETS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def parse_duration(value: Any) -> float:
    """Seconds from ``500ms``, ``30s``, ``10m``, ``1h`` or ``2d``. Raises ValueError, naming the cure."""
    if isinstance(value, float) and not isinstance(value, bool):
        return value  # a default of the model, already in seconds
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in _SECONDS:
        example = f"{value}s" if isinstance(value, int) and not isinstance(value, bool) else "30s"
        raise ValueError(f"{value!r} is not a duration; write a number and a unit (ms, s, m, h, d), for example {example}")
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest exact way to write `seconds`: 600.0 → ``10m``."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds / _SECONDS[unit])}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds else "0s"


def parse_size(value: Any) -> int:
    """Octets from ``512B``, ``64KiB``, ``1MiB`` or ``2GiB``. Raises ValueError, naming the cure."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 4096:
        return value  # a default of the model, already in octets
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in _OCTETS:
        raise ValueError(f"{value!r} is not a size; write a number and a unit (B, KiB, MiB, GiB), for example 64KiB")
    return int(float(match[1]) * _OCTETS[match[2]])


def format_size(octets: int) -> str:
    """The shortest exact way to write `octets`: 65536 → ``64KiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if octets and octets % _OCTETS[unit] == 0:
            return f"{octets // _OCTETS[unit]}{unit}"
    return f"{octets}B"


def parse_address(value: Any, default_port: int | None = None) -> Address:
    """``host:port``, ``[::1]:port`` or ``:port`` (every address of the machine). Raises ValueError, naming the cure."""
    if isinstance(value, Address):
        return value
    text = str(value).strip()
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]]*))(?::(?P<port>\d{1,5}))?", text)
    if match is None or not text:
        cure = f"[{text}]:110" if text.count(":") > 1 else "mail.example.com:110 or [2001:db8::1]:110"
        raise ValueError(f"{text!r} is not an address; write host:port, for example {cure}")
    host = match["v6"] or match["host"]
    if match["v6"]:
        ipaddress.IPv6Address(match["v6"])
    port = int(match["port"]) if match["port"] else default_port
    if port is None:
        raise ValueError(f"{text!r} has no port; write for example {text}:110")
    if port > 65535:
        raise ValueError(f"{port} is not a port; write a number from 1 to 65535")
    return Address(host, port)


def parse_server(value: Any) -> Address:
    """A backend: `parse_address` with the port optional (0 = the usual one of the pool's transport)."""
    address = parse_address(value, default_port=0)
    if not address.host:
        raise ValueError(f"{value!r} has no host; write for example mail.example.com:110")
    return address


def parse_network(value: Any) -> Network:
    """``192.0.2.0/24``, ``2001:db8::/32`` or one address. Raises ValueError, naming the cure."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        try:
            loose = ipaddress.ip_network(str(value), strict=False)
        except ValueError:
            raise ValueError(f"{value!r} is not a network; write for example 192.0.2.0/24 or 2001:db8::/32") from None
        raise ValueError(f"{error}; write {loose} for the network or {str(value).partition('/')[0]} for one address") from None


def _schema(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str), _schema(r"^\d+(\.\d+)?\s*(ms|s|m|h|d)$", "30s", "10m")
]
Size = Annotated[
    int, BeforeValidator(parse_size), PlainSerializer(format_size, return_type=str), _schema(r"^\d+(\.\d+)?\s*(B|KiB|MiB|GiB)$", "64KiB")
]
ListenAddress = Annotated[Address, BeforeValidator(parse_address), PlainSerializer(str, return_type=str), _schema(r"^.*:\d{1,5}$", ":110", "127.0.0.1:110")]
ServerAddress = Annotated[Address, BeforeValidator(parse_server), PlainSerializer(str, return_type=str), _schema(r"^\S+$", "mail.example.com:110")]
IpNetwork = Annotated[Network, BeforeValidator(parse_network), PlainSerializer(str, return_type=str), _schema(r"^[0-9A-Fa-f:./]+$", "192.0.2.0/24")]
