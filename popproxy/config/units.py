"""Values with units, as they are written in the configuration file: ``30s``, ``64KiB``, ``mail.example.com:110``.

Every ValueError raised here reads ``what is wrong; what would be right``. The loader hands over text only; numbers come
from defaults and from Python callers and are seconds or octets already.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from popproxy.types import Address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_OCTETS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_UNIT_SLIPS = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m"} | {
    "minutes": "m", "hour": "h", "hours": "h", "hr": "h", "day": "d", "days": "d", "msec": "ms", "M": "m", "S": "s",
    "H": "h", "D": "d", "b": "B", "K": "KiB", "k": "KiB", "kB": "KiB", "KB": "KiB", "kb": "KiB", "kib": "KiB",
    "MB": "MiB", "mb": "MiB", "mib": "MiB", "G": "GiB", "GB": "GiB", "gb": "GiB", "gib": "GiB",
}  # fmt: skip
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]{0,15})")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[\w.-]*))(?::(?P<port>[0-9]{1,5}))?")
_LONGEST_DURATION = 366 * 86400.0
_LARGEST_SIZE = 1 << 50
MOST_WORKERS = 256


def quote(value: object, limit: int = 60) -> str:
    """`value` in quotes for a message: one line, shortened, a password before an ``@`` masked."""
    text = value if isinstance(value, str) else str(value)
    before, at, host = text.rpartition("@")
    if at and ":" in before:
        text = f"****@{host}"
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _quantity(value: Any, units: dict[str, int], what: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    names = ", ".join(units)
    if match is None:
        raise ValueError(f"{quote(value)} is not a {what}; write a number and a unit ({names}), for example {example}")
    number, unit = match.groups()
    if unit in units:
        return float(number), unit
    intended = _UNIT_SLIPS.get(unit)
    if intended in units:
        raise ValueError(f"{quote(value)} is not a {what}; write {number}{intended} (units are {names})")
    wrong = f"has an unknown unit {unit}" if unit else "has no unit"
    likely = f"{number}{example.lstrip('0123456789')}"
    raise ValueError(f"{quote(value)} {wrong}; write a number and a unit ({names}), for example {likely}")


def parse_duration(value: Any) -> float:
    """Seconds, to the millisecond, from ``500ms``, ``30s``, ``10m``, ``1h`` or ``2d``. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        number, unit = _quantity(value, _MILLISECONDS, "duration", "30s")
        if number * _MILLISECONDS[unit] > _LONGEST_DURATION * 1000:
            raise ValueError(f"{quote(value)} is too long; write 366d or less")
        seconds = round(number * _MILLISECONDS[unit]) / 1000
    if not 0 <= seconds <= _LONGEST_DURATION:
        raise ValueError(f"{value} seconds is out of range; write a duration from 0s to 366d")
    return seconds


def parse_workers(value: Any) -> int:
    """How many worker processes; 0 for ``auto``. Raises ValueError."""
    text = str(value).strip()
    if text == "auto":
        return 0
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_WORKERS:
        raise ValueError(f"{quote(value)} is not a number of workers; write 1 to {MOST_WORKERS}, or auto")
    return int(text)


def format_duration(seconds: float) -> str:
    """The shortest exact way to write `seconds`: 600.0 → ``10m``."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _MILLISECONDS[unit] == 0:
            return f"{milliseconds // _MILLISECONDS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def parse_size(value: Any) -> int:
    """Octets from ``512B``, ``64KiB``, ``1MiB`` or ``2GiB``. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number, unit = _quantity(value, _OCTETS, "size", "64KiB")
    if number * _OCTETS[unit] > _LARGEST_SIZE:
        raise ValueError(f"{quote(value)} is too large; write {_LARGEST_SIZE >> 30}GiB or less")
    return int(number * _OCTETS[unit])


def format_size(octets: int) -> str:
    """The shortest exact way to write `octets`: 65536 → ``64KiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if octets and octets % _OCTETS[unit] == 0:
            return f"{octets // _OCTETS[unit]}{unit}"
    return f"{octets}B"


def parse_address(value: Any, default_port: int | None = None) -> Address:
    """``host:port``, ``[::1]:port`` or ``:port`` (every address of the machine). Raises ValueError."""
    if isinstance(value, Address):
        return value
    text = value.strip() if isinstance(value, str) else ""
    match = _ADDRESS.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{quote(value)} is not an address; write {_nearest_address(text)}")
    host = match["v6"] or match["host"]
    if (match["v6"] or re.fullmatch(r"[0-9.]+", host)) and not _is_ip(host):
        if text.isdigit() and default_port is None:
            raise ValueError(
                f"{quote(text)} is a port without a colon; write ':{text}' for every address of the machine"
            )
        raise ValueError(f"{quote(host)} is not an IP address; write for example 192.0.2.1:110 or [2001:db8::1]:110")
    if not _can_be_asked_for(host):
        raise ValueError(f"{quote(host)} is not a name; between its dots stand 1 to 63 characters")
    if match["port"] is None and default_port is None:
        raise ValueError(f"{quote(text)} has no port; write for example {text}:110")
    port = int(match["port"]) if match["port"] else default_port or 0
    if port > 65535:
        raise ValueError(f"{port} is not a port; write a number from 1 to 65535")
    return Address(host, port)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _can_be_asked_for(name: str) -> bool:
    """Name servers are asked for no other names, and Python raises what nobody expects."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _nearest_address(text: str) -> str:
    """What somebody who wrote `text` for an address may have meant."""
    bare = re.sub(r"^\w+://", "", text).rpartition("@")[2].partition("/")[0]
    if bare.startswith("*:"):
        return f"{bare[1:]!r} for every address of the machine"
    if _is_ip(bare):
        return f"for example '[{bare}]:110'"
    head, _, port = bare.rpartition(":")
    if port.isdigit() and _is_ip(head) and ":" in head:
        return f"'[{head}]:{port}'"
    if bare and bare != text and _ADDRESS.fullmatch(bare):
        return f"host:port only: {bare!r}"
    return "host:port, for example mail.example.com:110 or [2001:db8::1]:110"


def parse_server(value: Any) -> Address:
    """A backend: `parse_address` with the port optional (0 = the usual one of the pool's transport)."""
    address = parse_address(value, default_port=0)
    if not address.host:
        raise ValueError(f"{quote(value)} has no host; write for example mail.example.com:110")
    return address


def parse_name_server(value: Any) -> Address:
    """A name server: an IP address, with or without a port (53). Raises ValueError."""
    address = parse_address(value, default_port=53)
    if not _is_ip(address.host):
        raise ValueError(f"{quote(value)} is not an IP address; write for example 192.0.2.53 or [2001:db8::53]:53")
    return address


def parse_domain(value: str) -> str:
    """A domain, or a name of SRV records below one. Raises ValueError."""
    text = value.strip().rstrip(".").lower()
    if not re.fullmatch(r"(?=.{1,240}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", text) or _is_ip(text):
        raise ValueError(f"{quote(value)} is not a domain; write for example example.com")
    return text


def format_server(address: Address) -> str:
    """What `parse_server` reads back: the port is left out where it is 0."""
    return str(address) if address.port else str(address).rpartition(":")[0]


def parse_network(value: Any) -> Network:
    """``192.0.2.0/24``, ``2001:db8::/32`` or one address. Raises ValueError."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    text = value.strip() if isinstance(value, str) else ""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        try:
            loose = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(
                f"{quote(value)} is not a network; write for example 192.0.2.0/24, 2001:db8::/32 or one address"
            ) from None
        host = text.partition("/")[0]
        raise ValueError(
            f"{quote(text)} is an address in a network; write {loose} for the network or {host} for the address"
        ) from None


def parse_ip(value: str) -> str:
    """An IPv4 or IPv6 address. Raises ValueError."""
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        raise ValueError(f"{quote(value)} is not an address; write for example 192.0.2.5 or 2001:db8::5") from None


def parse_path(value: Path, info: ValidationInfo) -> Path:
    """A file name; a relative one starts at ``context["directory"]``, the configuration file's. Raises ValueError."""
    text = str(value)
    if text in {"", "."}:
        raise ValueError("is not a file name; write a path, for example /etc/popproxy/file")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("has a control character in a file name; write the path without it")
    if text.startswith("~"):
        raise ValueError(
            f"{quote(text)} begins with ~, which only a shell knows; write the whole path, beginning with /"
        )
    directory: Path | None = (info.context or {}).get("directory")
    return directory / value if directory is not None else value


def _schema(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    _schema(r"^\d+(\.\d+)?\s*(ms|s|m|h|d)$", "30s", "10m"),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    _schema(r"^\d+(\.\d+)?\s*(B|KiB|MiB|GiB)$", "64KiB"),
]
WorkerCount = Annotated[
    int,
    BeforeValidator(parse_workers),
    PlainSerializer(lambda count: count or "auto", return_type=int | str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_WORKERS}, {"const": "auto"}]}),
]
ListenAddress = Annotated[
    Address,
    BeforeValidator(parse_address),
    PlainSerializer(str, return_type=str),
    _schema(r"^.*:\d{1,5}$", ":110", "127.0.0.1:110"),
]
ServerAddress = Annotated[
    Address,
    BeforeValidator(parse_server),
    PlainSerializer(format_server, return_type=str),
    _schema(r"^\S+$", "mail.example.com:110"),
]
NameServerAddress = Annotated[
    Address,
    BeforeValidator(parse_name_server),
    PlainSerializer(str, return_type=str),
    _schema(r"^[0-9A-Fa-f:.\[\]]+$", "192.0.2.53", "127.0.0.1:53"),
]
DomainName = Annotated[str, AfterValidator(parse_domain)]
IpNetwork = Annotated[
    Network,
    BeforeValidator(parse_network),
    PlainSerializer(str, return_type=str),
    _schema(r"^[0-9A-Fa-f:./]+$", "192.0.2.0/24"),
]
IpAddress = Annotated[str, AfterValidator(parse_ip)]
LocalPath = Annotated[Path, AfterValidator(parse_path)]
