"""Templates of the configuration that a user's name is put into: distinguished names and filters.

Values are escaped and put in in one pass: what was put in is never looked at again, so a user called ``{domain}`` or
``*)(uid=*`` stays a user with a strange name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_PLACEHOLDER = re.compile(r"\{(user|local|domain)\}")
_FILTER_SPECIAL = re.compile(r"[\\*()\x00]")
_DN_SPECIAL = re.compile(r'[\\",+;<>=#\x00-\x1f\x7f]')
_NO_PRINCIPAL = re.compile(r'["/\\\[\]:;|=,+*?<>(){}\s]')


def fields_of(user: str) -> dict[str, str]:
    """What a template may name: the user, and its parts before and behind the last ``@``."""
    local, at, domain = user.rpartition("@")
    return {"user": user, "local": local if at else user, "domain": domain if at else ""}


def fill(template: str, user: str, escape: Callable[[str], str]) -> str:
    """`template` with ``{user}``, ``{local}`` and ``{domain}`` replaced by escaped values."""
    fields = fields_of(user)
    return _PLACEHOLDER.sub(lambda found: escape(fields[found[1]]), template)


def can_fill(template: str, user: str) -> bool:
    """Is nothing that `template` asks for empty in this name? ``dc={domain}`` says nothing of a user without one."""
    return all(value or f"{{{name}}}" not in template for name, value in fields_of(user).items())


def escape_filter(value: str) -> str:
    """For an assertion value of a search filter (RFC 4515 section 3)."""
    return _FILTER_SPECIAL.sub(lambda found: f"\\{ord(found[0]):02x}", value)


def escape_dn(value: str) -> str:
    """For an attribute value of a distinguished name (RFC 4514 section 2.4)."""
    escaped = _DN_SPECIAL.sub(
        lambda found: f"\\{found[0]}" if found[0] >= " " and found[0] != "\x7f" else f"\\{ord(found[0]):02x}", value
    )
    if escaped.startswith(" "):
        escaped = f"\\20{escaped[1:]}"
    return f"{escaped[:-1]}\\20" if escaped.endswith(" ") else escaped


def may_be_principal(name: str) -> bool:
    r"""May a user have this as a logon name of Active Directory? What may not could be taken for another kind of name.

    Active Directory takes a user principal name, ``DOMAIN\user`` or a distinguished name where LDAP wants the last.
    """
    return _NO_PRINCIPAL.search(name) is None
