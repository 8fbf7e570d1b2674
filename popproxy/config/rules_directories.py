"""What the keys of a directory must agree on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.model import Config
from popproxy.config.model_directories import AuthHttp, Ldap, Sql
from popproxy.config.rules_routing import check_placeholders
from popproxy.config.units import format_duration

LONG_CACHE = 600.0
"""Seconds. Beyond it somebody should think again."""

_FIELDS = ("user", "local", "domain")
_QUERY = "SELECT password, mailbox FROM users WHERE login = :user"
_FILTER = "(&(objectClass=person)(mail={user}))"


def _ldap(config: Config) -> Iterator[Finding]:
    for name, directory in config.directories.items():
        if directory.ldap is not None:
            at: KeyPath = ("directories", name, "ldap")
            yield from _search(directory.ldap, at)
            yield from _link(directory.ldap, at)


def _search(ldap: Ldap, at: KeyPath) -> Iterator[Finding]:
    """Is there a way from a user's name to an entry?"""
    for key, template in (("user_dn", ldap.user_dn), ("base", ldap.base), ("filter", ldap.filter)):
        if template is not None:
            yield from check_placeholders(template, (*at, key))
    because: tuple[KeyPath, ...] = ((*at, "user_dn"), (*at, "base"), (*at, "filter"))
    for missing, other, example in (("filter", "base", _FILTER), ("base", "filter", "ou=people,dc=example,dc=com")):
        if getattr(ldap, missing) is None and getattr(ldap, other) is not None:
            yield Finding((*at, other), f"{other} needs {missing}", f"add {missing}: {example}", because=because)
    if ldap.user_dn is None and ldap.base is None and ldap.filter is None:
        cure = "add user_dn: uid={local},ou=people,dc=example,dc=com, or base and filter to search users by"
        yield Finding(at, "nothing says how a user is found", cure, because=because)
    if ldap.user_dn is not None:
        yield from _user_dn(ldap, ldap.user_dn, at)
    if ldap.filter is not None:
        yield from _filter(ldap.filter, (*at, "filter"))


def _user_dn(ldap: Ldap, template: str, at: KeyPath) -> Iterator[Finding]:
    path = (*at, "user_dn")
    if not re.search(r"\{(user|local)\}", template):
        yield Finding(path, "is the same for every user", "put {user} or {local} where the user's name belongs")
    if "=" not in template and ldap.attributes.wanted and ldap.filter is None:
        what = "attributes can only be read from an entry, and this is not the name of one"
        cure = f"add base and filter: {_FILTER}"
        yield Finding((*at, "attributes"), what, cure, because=(path, (*at, "filter")))
    if ldap.account is not None and ldap.filter is None and "=" not in template:
        cure = "remove it, or add base and filter"
        yield Finding((*at, "account"), "has nothing to search", cure, warning=True, because=((*at, "filter"),))


def _filter(text: str, path: KeyPath) -> Iterator[Finding]:
    if not re.search(r"\{(user|local)\}", text):
        yield Finding(path, "finds the same for every user", f"put {{user}} or {{local}} into it: {_FILTER}")
    if re.search(r"\\(?![0-9A-Fa-f]{2})", text):
        what = "has a backslash without two hexadecimal digits (RFC 4515)"
        yield Finding(path, what, "write \\2a for *, \\28 for (, \\29 for ), \\5c for \\")
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            break
    if depth or not text.startswith("("):
        yield Finding(path, "has parentheses that do not match", f"write it like {_FILTER}")


def _link(ldap: Ldap, at: KeyPath) -> Iterator[Finding]:
    if ldap.tls == "none" and not ldap.allow_cleartext:
        cure = "write tls: starttls or tls: implicit, or allow_cleartext: true if the network is trusted"
        what = "passwords would go to the directory in clear"
        yield Finding((*at, "tls"), what, cure, because=((*at, "allow_cleartext"),))
    if ldap.tls != "none" and ldap.allow_cleartext:
        cure = "remove it, or write tls: none"
        yield Finding((*at, "allow_cleartext"), f"has no effect with tls: {ldap.tls}", cure, warning=True)
    if ldap.tls == "none" and ldap.ca is not None:
        yield Finding((*at, "ca"), "has no effect with tls: none", "remove it", warning=True)


def _sql(config: Config) -> Iterator[Finding]:
    for name, directory in config.directories.items():
        if directory.sql is not None:
            at: KeyPath = ("directories", name, "sql")
            yield from _query(directory.sql.query, (*at, "query"))
            yield from _database(directory.sql, at)


def _query(query: str, path: KeyPath) -> Iterator[Finding]:
    if not re.match(r"\s*(SELECT|WITH|VALUES)\b", query, re.IGNORECASE):
        yield Finding(path, "is not a query", f"write it like {_QUERY}")
    if ";" in query.rstrip().removesuffix(";"):
        yield Finding(path, "is more than one statement", "write one SELECT")
    names = re.findall(r"(?<![:\w]):([A-Za-z_]\w*)", query)
    for name in names:
        if name not in _FIELDS:
            yield Finding(path, f":{name} has no value here", "write :user, :local or :domain")
    if not set(names) & {"user", "local"}:
        yield Finding(path, "finds the same for every user", f"put :user or :local into it: {_QUERY}")
    if re.search(r"""['"]:(user|local|domain)['"]""", query):
        what = "has a value between quotes, which would then be the text :user itself"
        yield Finding(path, what, "write it without quotes: the database gets the value apart from the query")


def _database(sql: Sql, at: KeyPath) -> Iterator[Finding]:
    target = sql.target
    because: tuple[KeyPath, ...] = ((*at, "url"),)
    if target.kind == "sqlite" and sql.password is not None:
        yield Finding((*at, "password"), "has no effect with SQLite", "remove it", warning=True, because=because)
    linked = target.kind == "postgresql" and bool(target.host)
    if linked and sql.tls == "none" and not sql.allow_cleartext:
        cure = "write tls: require, or allow_cleartext: true if the network is trusted"
        what = "password hashes would come from the database in clear"
        yield Finding((*at, "tls"), what, cure, because=((*at, "allow_cleartext"), *because))
    if sql.allow_cleartext and (sql.tls == "require" or not linked):
        what = "has no effect with tls: require" if linked else "has no effect: there is no link to protect"
        yield Finding((*at, "allow_cleartext"), what, "remove it", warning=True, because=((*at, "tls"), *because))
    if sql.ca is not None and (sql.tls == "none" or not linked):
        what = "has no effect with tls: none" if linked else "has no effect: there is no link to protect"
        yield Finding((*at, "ca"), what, "remove it", warning=True, because=((*at, "tls"), *because))


def _http(config: Config) -> Iterator[Finding]:
    for name, directory in config.directories.items():
        if directory.http is not None:
            yield from _service(directory.http, ("directories", name, "http"))


def _service(http: AuthHttp, at: KeyPath) -> Iterator[Finding]:
    target = http.target
    because: tuple[KeyPath, ...] = ((*at, "url"),)
    linked = not target.secure and target.socket is None and not _is_loopback(target.host)
    if linked and not http.allow_cleartext:
        cure = "write https://, or allow_cleartext: true if the network is trusted"
        yield Finding((*at, "url"), "passwords would go to the service in clear", cure)
    if http.allow_cleartext and not linked:
        what = "has no effect with https://" if target.secure else "has no effect: there is no link to protect"
        yield Finding((*at, "allow_cleartext"), what, "remove it", warning=True, because=because)
    if http.ca is not None and not target.secure:
        yield Finding((*at, "ca"), "has no effect without https://", "remove it", warning=True, because=because)


def _pam(config: Config) -> Iterator[Finding]:
    for name, directory in config.directories.items():
        if directory.pam is None:
            continue
        path: KeyPath = ("directories", name, "pam", "user")
        yield from check_placeholders(directory.pam.user, path)
        if not re.search(r"\{(user|local)\}", directory.pam.user):
            yield Finding(path, "is the same for every user", "put {user} or {local} where the user's name belongs")


def _cache(config: Config) -> Iterator[Finding]:
    caches: dict[KeyPath, float] = {}
    for name, directory in config.directories.items():
        caches[("directories", name, "cache")] = directory.cache
    if config.kerberos is not None:
        caches[("kerberos", "cache")] = config.kerberos.cache
    for path, seconds in caches.items():
        if seconds > LONG_CACHE:
            what = f"an account that is closed stays open for {format_duration(seconds)}"
            yield Finding(path, what, "write for example 30s", warning=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


DIRECTORY_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_ldap, _sql, _http, _pam, _cache)
