"""Do the servers of a pool, the way to choose among them and what is asked of them fit together?"""

from __future__ import annotations

from collections.abc import Iterator

from popproxy.config.finding import Finding, KeyPath, twice
from popproxy.config.messages import nearest
from popproxy.config.model import Config
from popproxy.config.model_balance import Balance
from popproxy.config.model_pools import Pool
from popproxy.config.units import format_server


def _servers(config: Config) -> Iterator[Finding]:
    for name, pool in config.pools.items():
        at: KeyPath = ("pools", name)
        yield from _records(pool, at)
        yield from twice(map(format_server, pool.servers), (*at, "servers"))
        if len(pool.servers) > 1 and not pool.shared and pool.balance.choose != "hash":
            cure = (
                "write shared: true if all of them serve the same maildrops, balance: {choose: hash} if each user "
                "has one of them by his name, otherwise make a pool of each"
            )
            what = "several servers, but nothing says that they serve the same maildrops"
            yield Finding((*at, "servers"), what, cure, because=((*at, "shared"), (*at, "balance", "choose")))
        if pool.srv is None:
            yield from _choice(pool, at)


def _records(pool: Pool, at: KeyPath) -> Iterator[Finding]:
    """Servers are listed, or named by SRV records."""
    if pool.srv is None:
        if not pool.servers:
            cure = "write for example servers: [mail.example.com], or srv: example.com"
            yield Finding((*at, "servers"), "is missing, and there is no srv either", cure)
        return
    path: KeyPath = (*at, "srv")
    if pool.servers:
        yield Finding(path, "there are servers, too", "remove one of the two", because=((*at, "servers"),))
    if pool.tunnel is not None:
        what = "SRV records are asked for here, but the servers' names are looked up at the end of the tunnel"
        yield Finding(path, what, "write servers: [mail.example.com]", because=((*at, "tunnel"),))
    if pool.balance.choose == "hash" and not pool.shared:
        what = "users would change servers with the records, and find empty maildrops"
        cure = "write shared: true if all of them serve the same maildrops, otherwise list servers"
        yield Finding((*at, "balance", "choose"), what, cure, because=(path,))
    if pool.balance.weights:
        where = (*at, "balance", "weights")
        yield Finding(where, "have no effect: SRV records have weights of their own", "remove it", warning=True)


def _choice(pool: Pool, at: KeyPath) -> Iterator[Finding]:
    balance, names = pool.balance, [format_server(server) for server in pool.servers]
    path: KeyPath = (*at, "balance", "weights")
    for server in balance.weights:
        if server not in names:
            cure = f"did you mean {nearest(server, names) or names[0]}?"
            yield Finding((*path, server), "is not one of the servers of this pool", cure)
    if balance.weights and not any(balance.weights.get(name, 1) for name in names):
        yield Finding(path, "no server gets any logins", "give one of them 1 or more")
    elif balance.weights and balance.choose == "order":
        because = ((*at, "balance", "choose"),)
        yield Finding(path, "have no effect with choose: order", "write choose: weights", warning=True, because=because)
    if balance.choose != "order" and len(names) == 1:
        what, because = "has no effect: there is one server", ((*at, "servers"),)
        yield Finding((*at, "balance", "choose"), what, "remove it", warning=True, because=because)


def _queue(config: Config) -> Iterator[Finding]:
    for name, pool in config.pools.items():
        for key in ("queue", "queue_wait"):
            changed = getattr(pool.balance, key) != Balance.model_fields[key].default
            if changed and pool.balance.sessions is None:
                at: KeyPath = ("pools", name, "balance")
                cure = "say how many a server can take, for example sessions: 100, or remove it"
                because = ((*at, "sessions"),)
                yield Finding((*at, key), "has no effect without sessions", cure, warning=True, because=because)


def _check(config: Config) -> Iterator[Finding]:
    for name, pool in config.pools.items():
        check, at = pool.check, ("pools", name, "check")
        if check is None:
            continue
        if (check.user is None) != (check.password is None):
            missing = (
                "password: {file: /etc/popproxy/check.password}" if check.password is None else "user: popproxy-check"
            )
            yield Finding(at, "user and password belong together", f"add {missing}")
        if check.user is not None and pool.tls == "none" and not pool.allow_cleartext:
            cure = "write tls: stls or tls: implicit, or allow_cleartext: true if the network is trusted"
            because = (("pools", name, "tls"), ("pools", name, "allow_cleartext"))
            yield Finding((*at, "user"), "its password would go to the server in clear", cure, because=because)


BALANCE_RULES = (_servers, _queue, _check)
