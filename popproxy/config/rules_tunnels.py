"""What tunnels, SOCKS proxies, and the pools behind them, must agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.messages import nearest
from popproxy.config.model import Config
from popproxy.config.units import format_server


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
        at: KeyPath = ("pools", name)
        named = [((*at, "tunnel"), pool.tunnel)]
        named += [((*at, "server_tunnels", server), tunnel) for server, tunnel in pool.server_tunnels.items()]
        for path, tunnel in named:
            used.add(tunnel)
            if tunnel is not None and tunnel not in config.tunnels:
                yield _unknown(config, tunnel, path)
        servers = [format_server(server) for server in pool.servers]
        for server in pool.server_tunnels:
            if server not in servers:
                near = nearest(server, servers) or next(iter(servers), None)
                cure = f"did you mean {near}?" if near else "list it in servers, or write tunnel: for all of them"
                yield Finding((*at, "server_tunnels", server), "is not one of the servers of this pool", cure)
    for name in config.tunnels:
        if name not in used:
            cure = f"write tunnel: {name} at a pool, or remove it"
            yield Finding(("tunnels", name), "no pool is behind this tunnel", cure, warning=True, because=(("pools",),))


def _socks(config: Config) -> Iterator[Finding]:
    for name, pool in config.pools.items():
        at: KeyPath = ("pools", name, "socks")
        if pool.socks is None:
            continue
        if pool.tunnel is not None:
            cure = "keep one of them; server_tunnels can name single servers that are behind a tunnel"
            yield Finding(at, "there is a tunnel already", cure, because=(("pools", name, "tunnel"),))
        elif pool.all_tunneled:
            because = (("pools", name, "server_tunnels"),)
            what = "has no effect: each server is behind a tunnel"
            yield Finding(at, what, "remove it", warning=True, because=because)
        if (pool.socks.user is None) != (pool.socks.password is None):
            missing = "user: popproxy" if pool.socks.user is None else "password: {file: /etc/popproxy/socks.password}"
            yield Finding(at, "user and password belong together", f"add {missing}")


def _unknown(config: Config, name: str, path: KeyPath) -> Finding:
    meant = nearest(name, config.tunnels)
    names = ", ".join(config.tunnels)
    cure = f"did you mean {meant}?" if meant else "add it to the section tunnels" + (f", or name {names}" * bool(names))
    return Finding(path, f"there is no tunnel {name}", cure, because=(("tunnels",),))


TUNNEL_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_logins, _ways, _users, _socks)
