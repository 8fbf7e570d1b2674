"""Which lines of CAPA (RFC 2449) a pool may declare, and why not the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.messages import nearest
from popproxy.config.units import quote

_OF_BACKENDS = {
    "TOP": (r"", "TOP"),
    "UIDL": (r"", "UIDL"),
    "EXPIRE": (r" (?:\d{1,9}|NEVER)(?: USER)?", '"EXPIRE 30" (days) or "EXPIRE NEVER"'),
    "LOGIN-DELAY": (r" \d{1,9}(?: USER)?", '"LOGIN-DELAY 60" (seconds)'),
}
_OF_THE_PROXY = {
    "SASL": "popproxy announces the mechanisms that it accepts itself",
    "STLS": "TLS towards clients is popproxy's own",
    "USER": "popproxy decides itself where passwords are accepted",
    "PIPELINING": "popproxy always accepts pipelined commands; what the backend can do is the key pipelining",
    "IMPLEMENTATION": "popproxy does not say what stands behind it",
    "RESP-CODES": "popproxy sends response codes of its own",
    "AUTH-RESP-CODE": "popproxy sends response codes of its own",
    "APOP": "it is not a capability; a listener offers it with apop: true",
    "UTF8": "popproxy cannot pass it on, because it comes before the backend is known (RFC 6856)",
    "LANG": "popproxy cannot translate its own texts (RFC 6856)",
    "LAST": "it is not a capability; popproxy answers LAST itself",
}


def check_capabilities(lines: Sequence[str], at: KeyPath) -> Iterator[Finding]:
    """Findings for the list `lines` that stands at `at`."""
    seen: set[str] = set()
    for number, line in enumerate(lines):
        path = (*at, number)
        tag = line.split(" ")[0]
        if tag in seen:
            yield Finding(path, f"{tag} stands in this list already", "remove one of the two")
        seen.add(tag)
        if tag in _OF_BACKENDS:
            arguments, example = _OF_BACKENDS[tag]
            if re.fullmatch(arguments, line[len(tag) :], re.ASCII) is None:
                yield Finding(path, f"{quote(line)} has wrong arguments", f"write {example}")
        elif tag.upper() in _OF_THE_PROXY:
            yield Finding(path, f"{tag} is not the backend's to declare: {_OF_THE_PROXY[tag.upper()]}", "remove it")
        else:
            meant = nearest(tag, _OF_BACKENDS) if tag else None
            known = "TOP, UIDL, EXPIRE or LOGIN-DELAY"
            yield Finding(
                path, f"{quote(tag)} is not a known capability", f"did you mean {meant}?" if meant else f"write {known}"
            )
