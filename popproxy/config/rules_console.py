"""What the keys of the operators' console must agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.model import Config


def _proofs(config: Config) -> Iterator[Finding]:
    console = config.console
    if console is None:
        return
    keytab: KeyPath = ("console", "keytab")
    for name, operator in console.operators.items():
        at: KeyPath = ("console", "operators", name)
        if operator.authorized_keys is None and not operator.principals:
            cure = "add authorized_keys with a file of public keys, or principals"
            because: tuple[KeyPath, ...] = ((*at, "authorized_keys"), (*at, "principals"))
            yield Finding(at, "there is nothing to log in with", cure, because=because)
        if operator.principals and console.keytab is None:
            cure = "add keytab to the section console, with the key of host/NAME"
            yield Finding((*at, "principals"), "tickets cannot be judged without a keytab", cure, because=(keytab,))
    if console.keytab is not None and not any(operator.principals for operator in console.operators.values()):
        yield Finding(keytab, "no operator has principals", "add principals to one, or remove it", warning=True)
    if console.host is not None and console.keytab is None:
        yield Finding(("console", "host"), "has no effect without a keytab", "remove it", warning=True)


CONSOLE_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_proofs,)
