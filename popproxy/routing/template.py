r"""The backend's name for a user: a template from the configuration, filled with checked values in one pass.

What is filled in is never looked at again, so a user called ``{domain}`` or ``\1`` cannot have anything expanded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_PART = re.compile(r"\{(?P<field>\w+)\}|\\(?P<number>\d{1,2})|\\g<(?P<group>\w+)>")

Fill = Callable[[Mapping[str, str], "re.Match[str] | None"], str]


def compile_template(text: str) -> Fill:
    """A function of the fields (user, local, domain) and the rule's regex match. The loader has checked the names."""
    parts: list[str | tuple[str, str]] = []
    end = 0
    for found in _PART.finditer(text):
        parts.append(text[end : found.start()])
        parts.append(("field", found["field"]) if found["field"] else ("group", found["number"] or found["group"]))
        end = found.end()
    parts.append(text[end:])

    def fill(fields: Mapping[str, str], match: re.Match[str] | None) -> str:
        out = []
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            elif part[0] == "field":
                out.append(fields[part[1]])
            elif match is not None:
                name = part[1]
                out.append(match[int(name) if name.isdigit() else name] or "")
        return "".join(out)

    return fill
