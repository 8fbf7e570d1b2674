"""What is in a keytab, as the library reads it."""

from __future__ import annotations

from pathlib import Path

import gssapi
from gssapi import raw


def has_key(keytab: Path, principal: str) -> bool:
    """Is there a key of `principal` (``pop/host@REALM``) in the file? False if it is no keytab at all, too."""
    name = raw.import_name(principal.encode(), gssapi.NameType.kerberos_principal)
    store: dict[bytes | str, bytes | str] = {b"keytab": f"FILE:{keytab}".encode()}
    try:
        raw.acquire_cred_from(store, name=name, mechs=[gssapi.MechType.kerberos], usage="accept")
    except raw.GSSError:
        return False
    return True
