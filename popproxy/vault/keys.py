"""The vault's key where the configuration says that it is, and its change, which may break off at any moment.

A new key is written beside the old one (``.new``), the vault is encrypted with it, then it takes the old one's place.
Between the last two steps the vault opens with the key in ``.new`` alone: so whoever opens a vault looks there too, and
the next change of keys begins by finishing the one before.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from popproxy.config.model import Vault as VaultSection
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, VaultError
from popproxy.types import Secret
from popproxy.vault import files
from popproxy.vault.format import generate_key, is_key_of
from popproxy.vault.store import Vault


def vault_key(section: VaultSection) -> Secret:
    """The key of the vault. Raises ConfigError if there is none; whether it opens the vault is told by opening it."""
    pending = _pending(section)
    if pending is not None and _opens(section, pending):
        return pending
    return resolve_secret(section.key)


def newer_keys(section: VaultSection) -> list[Secret]:
    """What may be the vault's key by now: all that this process can read."""
    found = []
    pending = _pending(section)  # first: it may take the other's place at any moment
    if pending is not None:
        found.append(pending)
    with contextlib.suppress(ConfigError):  # it may be root's alone
        found.append(resolve_secret(section.key))
    return found


def rotate(section: VaultSection) -> bool:
    """Encrypt the vault with a new key; False if an earlier change was only finished, whose new key is in force now.

    Raises VaultError, also if the key is not in a file, and ConfigError.
    """
    path = section.key.file
    if path is None:
        raise VaultError("the key is not in a file; popproxy cannot put a new one in its place")
    with files.exclusive(path):
        new = _pending_path(path)
        if new.exists():
            if _finish(section, path, new):
                return False
            new.unlink()
        files.sweep(new)
        vault = Vault.open(section.file, resolve_secret(section.key))
        key = Secret(generate_key())
        files.create(new, key.reveal() + b"\n", like=path.stat())
        vault.rekey(key)
        files.take_place(new, path)
    return True


def _finish(section: VaultSection, path: Path, new: Path) -> bool:
    """Put the key of a change that broke off in its place; False if the vault was not encrypted with it."""
    pending = _pending(section)
    if pending is not None and _opens(section, pending):
        files.take_place(new, path)
        return True
    if not _opens(section, resolve_secret(section.key)):
        raise VaultError(f"{section.file} opens neither with {path} nor with {new}; find its key before going on")
    return False


def _pending_path(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _pending(section: VaultSection) -> Secret | None:
    """The key of a change under way, or broken off."""
    if section.key.file is None:
        return None
    new = _pending_path(section.key.file)
    try:
        return resolve_secret(section.key.model_copy(update={"file": new})) if os.path.lexists(new) else None
    except ConfigError:
        return None


def _opens(section: VaultSection, key: Secret) -> bool:
    try:
        with section.file.open("rb") as file:
            return is_key_of(file.readline(), key, str(section.file))
    except (OSError, VaultError):
        return False
