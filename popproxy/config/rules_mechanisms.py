"""What the SASL mechanisms of listeners need: secrets, TLS, and pools that can be logged in to without a password."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.model import Config, Listener

_WITH_VAULT = "add the section vault with file and key"


def _offered(config: Config) -> Iterator[tuple[KeyPath, Listener, str]]:
    """Every mechanism of every listener, with its place."""
    for number, listener in enumerate(config.listeners):
        for index, name in enumerate(listener.sasl):
            yield ("listeners", number, "sasl", index), listener, name


def _lists(config: Config) -> Iterator[Finding]:
    for number, listener in enumerate(config.listeners):
        at: KeyPath = ("listeners", number, "sasl")
        for index, name in enumerate(listener.sasl):
            if name in listener.sasl[:index]:
                yield Finding((*at, index), f"{name} stands in this list already", "remove one of the two")
        if listener.sasl and listener.protocol == "kpop":
            what = "has no meaning with protocol: kpop, whose clients have shown their ticket already"
            because: tuple[KeyPath, ...] = (("listeners", number, "protocol"),)
            yield Finding(at, what, "remove it, or give it a listener of its own", because=because)


def _pools(config: Config) -> Iterator[Finding]:
    """No password comes with these mechanisms that could be forwarded."""
    helpless = [name for name, pool in config.pools.items() if set(pool.login) == {"forward"}]
    for number, listener in enumerate(config.listeners):
        if not helpless or not listener.sasl or listener.protocol == "kpop":
            continue
        names = ", ".join(helpless)
        what = f"{', '.join(listener.sasl)} bring no password that could be forwarded to {names}"
        cure = f"add master or stored to the login of {names}, for example login: [forward, master]"
        because = tuple(("pools", name, "login") for name in helpless)
        at: KeyPath = ("listeners", number, "sasl")
        yield Finding(at, what, cure, warning=len(helpless) < len(config.pools), because=because)


def _secrets(config: Config) -> Iterator[Finding]:
    for at, listener, name in _offered(config):
        if name == "CRAM-MD5" and config.vault is None:
            yield Finding(at, "CRAM-MD5 needs the vault", f"{_WITH_VAULT}, or remove it", because=(("vault",),))
        if not name.startswith("SCRAM"):
            continue
        users = config.users is not None and "users" in listener.authenticate
        if config.vault is None and not users:
            what = f"nobody has a verifier for {name}: there is no vault, and the users file is not asked"
            cure = f"{_WITH_VAULT}, or write authenticate: [users] and make verifiers with popproxy hash-password"
            yield Finding(at, what, cure, because=(("vault",), ("users",), (*at[:2], "authenticate")))
        elif config.vault is None and config.scram is None:
            what = "without a key, a restart would show which users exist"
            cure = "add scram: {decoy_key: {file: /etc/popproxy/scram.key}}; openssl rand -base64 32 makes one"
            yield Finding(at, what, cure, because=(("vault",), ("scram",)))


def _binding(config: Config) -> Iterator[Finding]:
    for at, listener, name in _offered(config):
        if name.endswith("-PLUS") and listener.tls == "none":
            cure = f"write tls: stls, or {name.removesuffix('-PLUS')}"
            yield Finding(at, f"{name} is bound to TLS, and there is none", cure, because=((*at[:2], "tls"),))


def _unused(config: Config) -> Iterator[Finding]:
    if config.scram is not None and not any(name.startswith("SCRAM") for _, _, name in _offered(config)):
        cure = "add SCRAM-SHA-256 to a listener's sasl, or remove the section"
        yield Finding(("scram",), "no listener offers SCRAM", cure, warning=True, because=(("listeners",),))


MECHANISM_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_lists, _pools, _secrets, _binding, _unused)
