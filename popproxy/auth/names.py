"""Names and passwords are checked here, once, before anybody else sees them.

A control octet that came through could end a backend's command line and start another one; two spellings of one name
could reach two maildrops. So what passes has no control characters, is UTF-8 in one normal form, and is short.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

from popproxy.errors import PopproxyError
from popproxy.sasl.credentials import Credential, PasswordCredential, RpopCredential
from popproxy.types import AuthFailure

Case = Literal["fold", "keep"]

MAX_NAME: Final = 255
"""Octets of a name in UTF-8 (RFC 4616 section 2 asks for at least this; a POP3 command line has no more)."""
MAX_PASSWORD: Final = 1024
"""Octets of a password."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# Control, format (which holds the bidirectional controls and the zero-width characters), line and paragraph separator.
_INVISIBLE = frozenset(("Cc", "Cf", "Zl", "Zp"))
_WITHOUT_MEANING = frozenset(("Cs", "Cn"))  # surrogates; code points that Unicode has not assigned


class NameRefused(PopproxyError):
    """A name or password that cannot be. `reason` says why; the text never holds what was refused."""

    def __init__(self, reason: AuthFailure) -> None:
        super().__init__(f"name or password refused: {reason}")
        self.reason = reason


def check_name(raw: bytes) -> str:
    """Decode a user name. Raises NameRefused with EMPTY, CONTROL_CHARACTER or MALFORMED."""
    _check_octets(raw, MAX_NAME)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise NameRefused(AuthFailure.MALFORMED) from None
    categories = {unicodedata.category(character) for character in name}
    if categories & _INVISIBLE:
        raise NameRefused(AuthFailure.CONTROL_CHARACTER)
    if categories & _WITHOUT_MEANING:
        raise NameRefused(AuthFailure.MALFORMED)
    return name


def canonical(name: str, default_domain: str | None, case: Case) -> str:
    """The one spelling of a checked name: Unicode NFC, with a domain if there is a default, in lower case if `fold`.

    Spaces around it are dropped, as some servers do: what is counted and limited by user would be so for each spelling.
    NFC and not NFKC: compatibility forms are different names to a backend, and folding them would join two accounts.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if default_domain and "@" not in name:
        name = f"{name}@{default_domain}"
    if case == "fold":
        name = unicodedata.normalize("NFC", name.lower())
    return name


def vet(credential: Credential, default_domain: str | None = None, case: Case = "fold") -> str:
    """Check everything that a client claimed and return the canonical user name.

    Raises NameRefused: EMPTY, CONTROL_CHARACTER or MALFORMED for a name or password, AUTHZID if the client wants to act
    as somebody else (RFC 4616 section 2; nobody may).
    """
    if isinstance(credential, PasswordCredential):
        _check_octets(credential.password.reveal(), MAX_PASSWORD)
    elif isinstance(credential, RpopCredential):
        _check_octets(credential.argument.reveal(), MAX_PASSWORD)
    user = vet_name(credential.authcid, default_domain, case)
    if credential.authzid and vet_name(credential.authzid, default_domain, case) != user:
        raise NameRefused(AuthFailure.AUTHZID)
    return user


def vet_name(name: str, default_domain: str | None, case: Case) -> str:
    """Check a name and return its canonical form. Raises NameRefused."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise NameRefused(AuthFailure.MALFORMED) from None
    checked = check_name(raw)
    if checked.isspace():
        raise NameRefused(AuthFailure.EMPTY)
    user = canonical(checked, default_domain, case)
    if len(user.encode()) > MAX_NAME:
        raise NameRefused(AuthFailure.MALFORMED)
    return user


def _check_octets(raw: bytes, limit: int) -> None:
    if not raw:
        raise NameRefused(AuthFailure.EMPTY)
    if _CONTROL.search(raw):
        raise NameRefused(AuthFailure.CONTROL_CHARACTER)
    if len(raw) > limit:
        raise NameRefused(AuthFailure.MALFORMED)
