"""Who decides about passwords: are those there that listeners and domains name, and can they?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath, twice
from popproxy.config.messages import nearest
from popproxy.config.model import Config
from popproxy.config.units import quote

_BUILT_IN = ("users", "kerberos", "passthrough")


def _lists(config: Config) -> Iterator[tuple[KeyPath, list[str]]]:
    """Every list of authenticators, with its place."""
    for number, listener in enumerate(config.listeners):
        if listener.protocol != "kpop":
            yield ("listeners", number, "authenticate"), listener.authenticate
    for domain, names in config.authentication.domains.items():
        yield ("authentication", "domains", domain), names


def _who_decides(config: Config) -> Iterator[Finding]:
    for at, names in _lists(config):
        yield from twice(names, at)
        for number, name in enumerate(names):
            yield from _can_decide(config, name, (*at, number))
        yield from _order(names, at)
    used = {name for _, names in _lists(config) for name in names}
    listed = tuple(at for at, _ in _lists(config))
    # at least for the accounts that it disables
    needed = any(listener.takes_proofs or listener.uses_kerberos for listener in config.listeners)
    if config.users is not None and "users" not in used and not needed:
        cure = "add users to a listener's authenticate, or remove the section"
        yield Finding(("users",), "no listener asks the users file", cure, warning=True, because=listed)
    used.update(config.routing.directories)
    for name in config.directories:
        if name not in used and name not in _BUILT_IN:
            cure = f"add {name} to a listener's authenticate or to routing.directories, or remove it"
            because = (*listed, ("routing", "directories"))
            yield Finding(("directories", name), "nobody asks this directory", cure, warning=True, because=because)


def _order(names: list[str], at: KeyPath) -> Iterator[Finding]:
    """Passthrough takes every password, for the server to decide: also that of an account which others disable."""
    behind = names[names.index("passthrough") + 1 :] if "passthrough" in names else []
    if behind:
        before = [name for name in names if name != "passthrough"]
        what = f"takes every password, so {', '.join(behind)} behind it is asked about none"
        cure = f"write it last: [{', '.join([*before, 'passthrough'])}]"
        yield Finding((*at, names.index("passthrough")), what, cure, warning=True)


def _can_decide(config: Config, name: str, path: KeyPath) -> Iterator[Finding]:
    without_forward = [pool_name for pool_name, pool in config.pools.items() if "forward" not in pool.login]
    if name == "users" and config.users is None:
        cure = "add the section users with file: /etc/popproxy/users, or write passthrough"
        yield Finding(path, "there is no users file", cure, because=(("users",),))
    elif name == "kerberos" and config.kerberos is None:
        cure = "add the section kerberos with keytab, principals, replay_cache and realms, or write passthrough"
        yield Finding(path, "there is no section kerberos", cure, because=(("kerberos",),))
    elif name == "passthrough" and without_forward:
        names = ", ".join(without_forward)
        cure = f"add forward to the login of {names}, or let users decide"
        what = f"passthrough tries the client's password at the backend, but {names} does not log in with it"
        because = tuple(("pools", pool_name, "login") for pool_name in without_forward)
        yield Finding(path, what, cure, warning=len(without_forward) < len(config.pools), because=because)
    elif name not in _BUILT_IN and name not in config.directories:
        known = [*_BUILT_IN, *config.directories]
        meant = nearest(name, known)
        cure = f"write one of {', '.join(known)}" + (f"; did you mean {meant}?" if meant else "")
        what = f"{quote(name)} is not known here, and not the name of a directory"
        yield Finding(path, what, cure, because=(("directories",),))


def _domains(config: Config) -> Iterator[Finding]:
    for domain in config.authentication.domains:
        path: KeyPath = ("authentication", "domains", domain)
        if "@" in domain or not domain.strip():
            example = domain.rpartition("@")[2].strip() or "example.com"
            yield Finding(path, f"{quote(domain)} is not a domain", f"write it without @, for example {example}")
        names = config.authentication.domains[domain]
        without = [listener.name for listener in config.listeners if not listener.uses_kerberos]
        if "kerberos" in names and config.kerberos is not None and without:
            where: KeyPath = (*path, names.index("kerberos"))
            cure = f"add kerberos to the authenticate of {without[0]} too, or write another name here"
            yield Finding(where, f"the listener {without[0]} does not use Kerberos", cure, because=(("listeners",),))


def _names(config: Config) -> Iterator[Finding]:
    for name in config.directories:
        if name in _BUILT_IN:
            cure = f"give the directory another name, for example {name}-directory"
            yield Finding(("directories", name), f"{name} means something else in authenticate", cure)


AUTHENTICATION_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_who_decides, _domains, _names)
