"""What the section shared_state must agree on, in itself and with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding
from popproxy.config.model import Config

_AT = "shared_state"


def _login(config: Config) -> Iterator[Finding]:
    shared = config.shared_state
    if shared is None:
        return
    if shared.username is not None and shared.password is None:
        cure = "add password: {file: /etc/popproxy/redis.password}"
        yield Finding((_AT, "username"), "has no password", cure, because=((_AT, "password"),))
    if shared.timeout * 4 > shared.lifetime:
        what = "is so short that a replica would count as dead while it waits for Redis"
        yield Finding((_AT, "lifetime"), what, "make it four times timeout or more", because=((_AT, "timeout"),))


def _tls(config: Config) -> Iterator[Finding]:
    shared = config.shared_state
    if shared is None:
        return
    because = ((_AT, "url"),)
    if not shared.url.tls:
        for key in ("ca", "cert", "cert_key"):
            if getattr(shared, key) is not None:
                cure = "write rediss:// there, or remove it"
                yield Finding((_AT, key), "has no effect without TLS", cure, warning=True, because=because)
        away = [server for server in shared.url.servers if server.host not in {"localhost", "127.0.0.1", "::1"}]
        if away and shared.password is not None:
            what = f"the password goes to {away[0]} in clear"
            yield Finding((_AT, "url"), what, "write rediss://, if Redis has TLS", warning=True)
    elif shared.cert_key is not None and shared.cert is None:
        yield Finding((_AT, "cert_key"), "there is no certificate that it is the key of", "add cert, or remove it")


def _tickets(config: Config) -> Iterator[Finding]:
    kerberos = config.kerberos
    if kerberos is not None and config.shared_state is None and "keys_shared" in kerberos.model_fields_set:
        what, cure = "has no effect without shared_state", "add that section, or remove it"
        because = ((_AT,),)
        yield Finding(("kerberos", "keys_shared"), what, cure, warning=True, because=because)


SHARED_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_login, _tls, _tickets)
