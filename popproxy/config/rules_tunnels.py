"""What tunnels, and the pools behind them, must agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.messages import nearest
from popproxy.config.model import Config


def _logins(config: Config) -> Iterator[Finding]:
    for name, tunnel in config.tunnels.items():
        at: KeyPath = ("tunnels", name)
        if tunnel.key is None and not tunnel.gssapi:
            cure = "add key: {file: /etc/popproxy/tunnel.key}, or gssapi: true"
            because: tuple[KeyPath, ...] = ((*at, "key"), (*at, "gssapi"))
            yield Finding(at, "there is nothing to log in with", cure, because=because)
        if tunnel.passphrase is not None and tunnel.key is None:
            yield Finding((*at, "passphrase"), "there is no key that it would open", "remove it, or add key")
        if tunnel.keytab is not None and not tunnel.gssapi:
            cure = "remove it, or write gssapi: true"
            yield Finding((*at, "keytab"), "has no effect without gssapi", cure, because=((*at, "gssapi"),))
        if tunnel.retry > tunnel.retry_longest:
            what = "the first attempt would come later than the longest wait allows"
            cure = "make it shorter than retry_longest"
            yield Finding((*at, "retry"), what, cure, because=((*at, "retry_longest"),))


def _ways(config: Config) -> Iterator[Finding]:
    """Each way through other tunnels ends at one that is reached directly."""
    for name, tunnel in config.tunnels.items():
        path: KeyPath = ("tunnels", name, "via")
        if tunnel.via is None:
            continue
        if tunnel.via not in config.tunnels:
            yield _unknown(config, tunnel.via, path)
            continue
        passed = [name]
        while (following := config.tunnels[passed[-1]].via) in config.tunnels:
            assert following is not None
            if following in passed:
                if following == name:
                    what = f"leads in a circle: {' via '.join([*passed, name])}"
                    yield Finding(path, what, "name a tunnel that is reached without this one, or remove it")
                break
            passed.append(following)


def _users(config: Config) -> Iterator[Finding]:
    used = {tunnel.via for tunnel in config.tunnels.values()}
    for name, pool in config.pools.items():
        if pool.tunnel is None:
            continue
        used.add(pool.tunnel)
        if pool.tunnel not in config.tunnels:
            yield _unknown(config, pool.tunnel, ("pools", name, "tunnel"))
    for name in config.tunnels:
        if name not in used:
            cure = f"write tunnel: {name} at a pool, or remove it"
            yield Finding(("tunnels", name), "no pool is behind this tunnel", cure, warning=True, because=(("pools",),))


def _unknown(config: Config, name: str, path: KeyPath) -> Finding:
    meant = nearest(name, config.tunnels)
    names = ", ".join(config.tunnels)
    cure = f"did you mean {meant}?" if meant else "add it to the section tunnels" + (f", or name {names}" * bool(names))
    return Finding(path, f"there is no tunnel {name}", cure, because=(("tunnels",),))


TUNNEL_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_logins, _ways, _users)
