# ruff: noqa: E501 (a row of the table is one line)
"""Wrong configurations, and what an administrator is told: the line, the key, and a cure that leads on."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from popproxy.config.loader import load_bytes
from popproxy.errors import ConfigError, Problem

LISTENERS = """
listeners:
  - name: pop3
    listen: [":110"]
"""
POOLS = """
pools:
  main:
    servers: [old.example.com]
"""
TLS = """
tls:
  certificates:
    - cert: mail.pem
"""
VAULT = """
vault:
  file: vault
  key: {file: vault.key}
"""


def kerberos(
    lines: str, pools: str = "", *, principal: str = "pop/a@A", realms: str = "[{realm: A}]", more: str = ""
) -> str:
    """A listener of which `lines` begin in line 4, a section kerberos behind it, and a pool with a master user."""
    pools = pools or "pools:\n  main: {servers: [a], login: [forward, master], master: {user: m, password: {env: M}}}"
    return (
        f"{listener(lines)}kerberos:\n  keytab: k\n  principals: [{principal}]\n  replay_cache: r\n  realms: {realms}\n"
        f"{more}{pools}\n"
    )


def shared(lines: str) -> str:
    """The section shared_state of which `lines` begin in line 2."""
    return f"shared_state:\n  {lines}\n  key: {{env: K}}\n"


EXTERNAL = "external: {rules: [{take: email}]}\n"


def oauth(*lines: str) -> str:
    """The section oauth, with an issuer for each of `lines`, which stands in line 4, 7 ..."""
    found = "oauth:\n  issuers:\n"
    for line in lines or ("scopes: []",):
        audience = "scopes: []" if line.startswith("audience") else "audience: [popproxy]"
        found += f"    - issuer: https://a.example\n      {line}\n      {audience}\n"
    return found


RPOP = "rpop: {networks: [10.0.0.0/8]}\n"


def proofs(lines: str) -> str:
    """A listener of which `lines` begin in line 4, and a pool with a master user."""
    pools = "pools:\n  main: {servers: [a], login: [forward, master], master: {user: m, password: {env: M}}}\n"
    return listener(lines) + pools


def sasl(value: str) -> str:
    """A listener with `sasl` in line 4 and its other lines behind it, and a pool with a master user."""
    return proofs(f"sasl: {value}")


def ldap(lines: str) -> str:
    """A listener that asks a directory, of whose section ldap `lines` begin in line 9."""
    return (
        listener("authenticate: [corp]")
        + "directories:\n  corp:\n    ldap:\n      servers: [ldap.example.com]\n"
        + _indented(lines, 6)
    )


def sql(lines: str) -> str:
    """A listener that asks a directory, of whose section sql `lines` begin in line 8."""
    return listener("authenticate: [shop]") + "directories:\n  shop:\n    sql:\n" + _indented(lines, 6)


def web(lines: str) -> str:
    """A listener that asks a directory, of whose section http `lines` begin in line 8."""
    return listener("authenticate: [web]") + "directories:\n  web:\n    http:\n" + _indented(lines, 6)


class Wrong(NamedTuple):
    """`text` is completed with good sections where it lacks listeners, pools or tls; lines count from its first line."""

    text: str
    line: int
    key: str
    cure: str
    also: tuple[str, ...] = ()  # keys of what is wrong besides


def complete(text: str) -> bytes:
    """`text` with the sections that it lacks, put behind it so that its line numbers stay."""
    text = dedent(text).lstrip("\n")
    for section in (LISTENERS, POOLS, TLS):
        name = section.split(":")[0].strip()
        if not any(line.startswith(f"{name}:") for line in text.splitlines()):
            text = text.rstrip("\n") + "\n" + section
    return text.encode()


def problems(raw: bytes) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_bytes(raw, Path("etc/popproxy.yaml"))
    return caught.value.problems


def listener(lines: str) -> str:
    """A listener of which `lines` begin in line 4."""
    return 'listeners:\n  - name: pop3\n    listen: [":110"]\n' + _indented(lines, 4)


def console(*lines: str) -> str:
    """A console with `lines` from line 4 on."""
    return "\n".join(
        ["console:", "  listen: 127.0.0.1:9122", "  host_key: {file: k}", *(f"  {line}" for line in lines)]
    )


def pool(lines: str) -> str:
    """A pool of which `lines` begin in line 4."""
    return "pools:\n  main:\n    servers: [old.example.com]\n" + _indented(lines, 4)


def rule(lines: str) -> str:
    """A rule of which `lines` begin in line 3."""
    return "routing:\n  rules:\n    - " + _indented(lines, 6).lstrip()


def tunnel(lines: str) -> str:
    """A tunnel of which `lines` begin in line 8, and a pool behind it."""
    head = "pools:\n  main: {servers: [a], tunnel: jump}\ntunnels:\n  jump:\n    host: a\n    user: b\n    known_hosts: k\n"
    return head + _indented(lines, 4)


def _indented(lines: str, by: int) -> str:
    return "".join(" " * by + line + "\n" for line in lines.strip("\n").split("\n"))


TWO_POOLS = """
pools:
  north: {servers: [north.example.com]}
  south: {servers: [south.example.com]}
"""

WRONG = {
    # keys that do not exist, or not here
    "a slip in a section's name": Wrong("listners: []\n", 1, "listners", "did you mean listeners?"),
    "a slip in a key": Wrong("timeouts:\n  idel: 10m\n", 2, "timeouts.idel", "did you mean idle?"),
    "a slip in a key of a list entry": Wrong(listener("banenr: Hi"), 4, "listeners[0].banenr", "did you mean banner?"),
    "a slip in a key of a pool": Wrong(pool("sever_name: a"), 4, "pools.main.sever_name", "did you mean server_name?"),
    "a slip in a key of a rule": Wrong(rule("domian: a.example\npool: main"), 3, "routing.rules[0].domian", "domain?"),
    "capital letters in a key": Wrong("Timeouts: {}\n", 1, "Timeouts", "did you mean timeouts?"),
    "a hyphen in a key": Wrong("audit:\n  on-error: open\n", 2, "audit.on-error", "did you mean on_error?"),
    "a key of another section": Wrong("limits:\n  idle: 10m\n", 2, "limits.idle", "idle belongs in timeouts"),
    "a key of a section at the top": Wrong("failure_delay: 1s\n", 1, "failure_delay", "belongs in authentication"),
    "a section inside another": Wrong(listener("timeouts: {idle: 10m}"), 4, "listeners[0].timeouts", "start of a line"),
    "a pool's key at a listener": Wrong(listener("servers: [a]"), 4, "listeners[0].servers", "in pools.<name>"),
    "a listener's key at a pool": Wrong(pool("banner: Hi"), 4, "pools.main.banner", "belongs in listeners[]"),
    "another program's word for a key": Wrong(listener("port: 110"), 4, "listeners[0].port", "did you mean listen?"),
    "another program's word for a section": Wrong("metrics: {}\n", 1, "metrics", "did you mean http?"),
    "another program's word for a server": Wrong(pool("host: a"), 4, "pools.main.host", "did you mean servers?"),
    "a key that nothing resembles": Wrong("audit:\n  xyzzy: 1\n", 2, "audit.xyzzy", "keys here are file, on_error"),
    "a section that nothing resembles": Wrong("xyzzy: 1\n", 1, "xyzzy", "sections are listeners, pools"),
    "a secret in the file": Wrong("vault:\n  file: v\n  key: {value: hunter2}\n", 3, "vault.key.value", "file of its own"),
    "a secret as the value": Wrong("vault:\n  file: v\n  key: hunter2\n", 3, "vault.key", "{file: /etc/popproxy/vault.key}"),
    # what is missing
    "no listeners": Wrong("listeners: []\n", 1, "listeners", "at least one entry, for example [{name: pop3"),
    "no pools": Wrong("pools: {}\n", 1, "pools", "at least one entry, for example {main: {servers: [mail.example.com]}}"),
    "an empty list of listeners": Wrong("listeners:\n", 1, "listeners", "for example [{name: pop3"),
    "a listener without a name": Wrong('listeners:\n  - listen: [":110"]\n', 2, "listeners[0].name", "add it, for example name: pop3"),
    "a listener without addresses": Wrong("listeners:\n  - name: a\n", 2, "listeners[0].listen", 'add it, for example listen: [":110"]'),
    "a pool without servers": Wrong("pools:\n  main:\n    shared: true\n", 2, "pools.main.servers", "servers: [mail.example.com]"),
    "a pool without anything": Wrong("pools:\n  main:\n", 2, "pools.main.servers", "servers: [mail.example.com]"),
    "a certificate without its file": Wrong("tls:\n  certificates:\n    - key: a.key\n", 3, "tls.certificates[0].cert", "cert: /etc/"),
    "users without a file": Wrong("users: {}\n", 1, "users.file", "file: /etc/popproxy/users"),
    "a vault without a key": Wrong("vault:\n  file: v\n", 1, "vault.key", "{file: /etc/popproxy/vault.key}"),
    "a key from nowhere": Wrong("vault:\n  file: v\n  key: {}\n", 3, "vault.key", "write for example {file:"),
    "a key from two places": Wrong("vault:\n  file: v\n  key: {file: a, env: B}\n", 3, "vault.key", "write for example {file:"),
    "a rule without a condition": Wrong(rule("pool: main"), 3, "routing.rules[0]", "write for example domain: example.com"),
    "a rule with two conditions": Wrong(rule("user: a\ndomain: b.example\npool: main"), 3, "routing.rules[0]", "make one rule of each"),
    "a rule without a pool": Wrong(rule("user: a"), 3, "routing.rules[0]", "write for example pool: main"),
    # kinds of values
    "one address instead of a list": Wrong('listeners:\n  - name: a\n    listen: ":110"\n', 3, "listeners[0].listen", 'write [":110"]'),
    "one server instead of a list": Wrong("pools:\n  main:\n    servers: a.example\n", 3, "pools.main.servers", "write [a.example]"),
    "servers with commas": Wrong("pools:\n  main:\n    servers: a, b\n", 3, "pools.main.servers", "write [a, b]"),
    "listeners by name": Wrong("listeners:\n  pop3:\n    listen: [\":110\"]\n", 1, "listeners", 'entries with "- "'),
    "pools as a list": Wrong("pools:\n  - servers: [a]\n", 1, "pools", "{main: {servers: [mail.example.com]}}"),
    "a section that is a word": Wrong("audit: yes\n", 1, "audit", "its keys are file, on_error"),
    "a section that is a list": Wrong("limits:\n  - connections: 5\n", 1, "limits", "indented below it: connections"),
    "a listener that is a word": Wrong("listeners: [pop3]\n", 1, "listeners[0]", "{name: ...}"),
    "a certificate that is a word": Wrong("tls:\n  certificates: [a.pem]\n", 2, "tls.certificates[0]", "{cert: ...}"),
    "a list instead of a word": Wrong("users:\n  file: [a, b]\n", 2, "users.file", "/etc/popproxy/users"),
    "a section instead of a word": Wrong("users:\n  file: {a: b}\n", 2, "users.file", "/etc/popproxy/users"),
    "a list instead of a duration": Wrong("timeouts:\n  idle: [10m]\n", 2, "timeouts.idle", "for example 30s"),
    "a number in words": Wrong("limits:\n  connections: many\n", 2, "limits.connections", "for example 10000"),
    "a number with a unit": Wrong("limits:\n  connections: 10k\n", 2, "limits.connections", "without a unit"),
    "a fraction": Wrong("authentication:\n  tries: 2.5\n", 2, "authentication.tries", "for example 3"),
    "a number without a value": Wrong("authentication:\n  tries:\n", 2, "authentication.tries", "a whole number, for example 3"),
    "a number that is too small": Wrong("authentication:\n  tries: 0\n", 2, "authentication.tries", "from 1 to 100"),
    "a number that is too large": Wrong("authentication:\n  tries: 101\n", 2, "authentication.tries", "from 1 to 100"),
    "a negative number": Wrong("limits:\n  connections: -1\n", 2, "limits.connections", "write 1 or more"),
    "fewer connections than workers": Wrong("workers: 4\nlimits:\n  connections: 3\n", 3, "limits.connections", "write 4 or more, or fewer workers"),
    "neither true nor false": Wrong(pool("shared: maybe"), 4, "pools.main.shared", "write true or false (the default is false)"),
    "a boolean without a value": Wrong(pool("verify:"), 4, "pools.main.verify", "the default is true"),
    # words from a closed set
    "starttls for stls": Wrong(listener("tls: starttls"), 4, "listeners[0].tls", "did you mean stls?"),
    "ssl for implicit": Wrong(listener("tls: ssl"), 4, "listeners[0].tls", "did you mean implicit?"),
    "true for tls": Wrong(pool("tls: true"), 4, "pools.main.tls", "one of stls, implicit, none; did you mean stls?"),
    "no for tls": Wrong(pool("tls: off"), 4, "pools.main.tls", "did you mean none?"),
    "false for pipelining": Wrong(pool("pipelining: false"), 4, "pools.main.pipelining", "auto, yes, no; did you mean no?"),
    "an old version of TLS": Wrong("tls:\n  certificates: [{cert: a}]\n  minimum: 1.0\n", 3, "tls.minimum", "1.2, 1.3"),
    "a wrong level": Wrong("logging:\n  level: warn\n", 2, "logging.level", "did you mean warning?"),
    "a word unlike all others": Wrong("audit:\n  on_error: qqq\n", 2, "audit.on_error", "write one of closed, open"),
    "an unknown way to log in": Wrong(pool("login: [foward]"), 4, "pools.main.login[0]", "did you mean forward?"),
    "an unknown judge of passwords": Wrong(listener("authenticate: [ldap]"), 4, "listeners[0].authenticate[0]", "users, kerberos, passthrough"),
    "nobody to judge passwords": Wrong(listener("authenticate: []"), 4, "listeners[0].authenticate", "for example [passthrough]"),
    "no way to log in": Wrong(pool("login: []"), 4, "pools.main.login", "for example [forward]"),
    "a word without a value": Wrong("logging:\n  level:\n", 2, "logging.level", "debug, info, warning, error"),
    # units
    "a duration without a unit": Wrong("timeouts:\n  login: 60\n", 2, "timeouts.login", "for example 60s"),
    "a duration in words": Wrong("timeouts:\n  login: soon\n", 2, "timeouts.login", "for example 30s"),
    "a duration with a long unit": Wrong("timeouts:\n  login: 2 minutes\n", 2, "timeouts.login", "write 2m"),
    "a duration in sexagesimal": Wrong("timeouts:\n  login: 1:30\n", 2, "timeouts.login", "for example 30s"),
    "a negative duration": Wrong("timeouts:\n  login: -5s\n", 2, "timeouts.login", "for example 30s"),
    "a duration of nothing": Wrong("timeouts:\n  login: 0s\n", 2, "timeouts.login", "for example 30s"),
    "an endless duration": Wrong("timeouts:\n  drain: 99999d\n", 2, "timeouts.drain", "366d or less"),
    "no workers": Wrong("workers: 0\n", 1, "workers", "write 1 to 256, or auto"),
    "workers without end": Wrong(f"workers: {'1' * 5000}\n", 1, "workers", "write 1 to 256, or auto"),
    "workers by another word": Wrong("workers: all\n", 1, "workers", "write 1 to 256, or auto"),
    "no time for sessions after a reload": Wrong("timeouts:\n  reload: 0s\n", 2, "timeouts.reload", "for example 30s"),
    "a duration without a value": Wrong("timeouts:\n  login:\n", 2, "timeouts.login", "for example 30s"),
    # addresses, networks, files, names
    "a port without a colon": Wrong("listeners:\n  - {name: a, listen: [110]}\n", 2, "listeners[0].listen[0]", "write ':110'"),
    "a host without a port": Wrong("listeners:\n  - {name: a, listen: [10.0.0.1]}\n", 2, "listeners[0].listen[0]", "10.0.0.1:110"),
    "IPv6 without brackets": Wrong("listeners:\n  - {name: a, listen: ['2001:db8::1']}\n", 2, "listeners[0].listen[0]", "'[2001:db8::1]:110'"),
    "an asterisk for the host": Wrong("listeners:\n  - {name: a, listen: ['*:110']}\n", 2, "listeners[0].listen[0]", "':110'"),
    "a port too high": Wrong("listeners:\n  - {name: a, listen: [':99999']}\n", 2, "listeners[0].listen[0]", "from 1 to 65535"),
    "two dots in a name": Wrong("listeners:\n  - {name: a, listen: ['pop..example.com:110']}\n", 2, "listeners[0].listen[0]", "between its dots stand 1 to 63 characters"),
    "not an IPv4 address": Wrong("listeners:\n  - {name: a, listen: ['300.1.1.1:110']}\n", 2, "listeners[0].listen[0]", "192.0.2.1:110"),
    "a server as a URL": Wrong("pools:\n  a:\n    servers:\n      - pop3://mail.example.com:110/\n", 4, "pools.a.servers[0]", "'mail.example.com:110'"),
    "a server with a password": Wrong("pools:\n  a: {servers: ['joe:pw@mail.example.com']}\n", 2, "pools.a.servers[0]", "'mail.example.com'"),
    "a server without a host": Wrong("pools:\n  a: {servers: [':110']}\n", 2, "pools.a.servers[0]", "mail.example.com:110"),
    "an empty server": Wrong("pools:\n  a: {servers: ['']}\n", 2, "pools.a.servers[0]", "host:port"),
    "a list without a value in it": Wrong("pools:\n  a:\n    servers:\n      -\n", 4, "pools.a.servers[0]", "mail.example.com"),
    "an address with bits of the host": Wrong(listener("cleartext_networks: [10.0.0.1/8]"), 4, "listeners[0].cleartext_networks[0]", "10.0.0.0/8"),
    "not a network": Wrong(listener("proxy_protocol: [lan]"), 4, "listeners[0].proxy_protocol[0]", "192.0.2.0/24"),
    "a front by its name": Wrong(listener("xclient: [front.example.com]"), 4, "listeners[0].xclient[0]", "192.0.2.0/24"),
    "an unknown version of PROXY headers": Wrong(pool("proxy_header: 2"), 4, "pools.main.proxy_header", "did you mean v2?"),
    "an empty file name": Wrong("users: {file: ''}\n", 1, "users.file", "write a path"),
    "a file name with ~": Wrong("users:\n  file: ~/users\n", 2, "users.file", "whole path"),
    "a capital letter in a pool's name": Wrong("pools:\n  Main Pool: {servers: [a]}\n", 2, "pools.Main Pool", "for example main-pool"),
    "a listener's name with a blank": Wrong("listeners:\n  - {name: My POP, listen: [':1']}\n", 2, "listeners[0].name", "my-pop"),
    "a banner with a timestamp": Wrong(listener("banner: POP3 <1.2@a>"), 4, "listeners[0].banner", "without < and >"),
    "a banner without end": Wrong(listener(f"banner: {'x' * 201}"), 4, "listeners[0].banner", "200 or fewer"),
    "a broken regular expression": Wrong(rule("regex: '(a'\npool: main"), 3, "routing.rules[0].regex", "backslash"),
    "a regular expression that counts too far": Wrong(rule("regex: 'a{99999999999}'\npool: main"), 3, "routing.rules[0].regex", "backslash"),
    "one that counts further than Python reads": Wrong(rule(f"regex: 'a{{{'9' * 5000}}}'\npool: main"), 3, "routing.rules[0].regex", "backslash"),
    "a regular expression that is nested too deep": Wrong(rule(f"regex: '{'(' * 3000}{')' * 3000}'\npool: main"), 3, "routing.rules[0].regex", "backslash"),
    # sections that do not agree
    "two listeners of one name": Wrong("listeners:\n  - {name: a, listen: [':1']}\n  - {name: a, listen: [':2']}\n", 3, "listeners[1].name", "a-2"),
    "two listeners at one address": Wrong("listeners:\n  - {name: a, listen: [':1']}\n  - {name: b, listen: [':1']}\n", 3, "listeners[1].listen[0]", "another port"),
    "an address inside another": Wrong("listeners:\n  - {name: a, listen: ['0.0.0.0:1']}\n  - {name: b, listen: ['127.0.0.1:1']}\n", 3, "listeners[1].listen[0]", "another port"),
    "metrics where clients connect": Wrong("http: {listen: ':110'}\n", 1, "http.listen", "another port"),
    "STLS without a certificate": Wrong("tls: {}\n" + LISTENERS, 4, "listeners[0].tls", "tls with certificates"),
    "TLS without a certificate": Wrong("tls: {}\n" + listener("tls: implicit"), 5, "listeners[0].tls", "tls with certificates"),
    "a listener that lets nobody in": Wrong(listener("tls: none"), 4, "listeners[0].tls", "add cleartext_networks"),
    "a default pool that is not there": Wrong("routing:\n  default: mian\n", 2, "routing.default", "did you mean main?"),
    "a rule to a pool that is not there": Wrong(rule("user: a\npool: elsewhere"), 4, "routing.rules[0].pool", "name one of main"),
    "two pools and no routing": Wrong(TWO_POOLS, 1, "routing", "write default: north in the section routing"),
    "a default name without a pool": Wrong(rule("user: a\npool: main") + "  default_backend_user: x\n", 5, "routing.default_backend_user", "default: main"),
    "two servers that are not shared": Wrong("pools:\n  a:\n    servers: [a, b]\n", 3, "pools.a.servers", "shared: true"),
    "a weight for a server that the pool has not": Wrong("pools:\n  a:\n    shared: true\n    servers: [pop1, pop2]\n    balance:\n      choose: weights\n      weights: {pop3: 2}\n", 7, "pools.a.balance.weights.pop3", "did you mean"),
    "weights that leave nobody": Wrong("pools:\n  a:\n    servers: [pop1]\n    balance:\n      weights: {pop1: 0}\n", 5, "pools.a.balance.weights", "1 or more"),
    "no time between probes": Wrong(pool("balance: {retry: 0s}"), 4, "pools.main.balance.retry", "5s"),
    "a check without a password": Wrong(pool("check: {user: joe}"), 4, "pools.main.check", "add password: {file:"),
    "a check whose password goes in clear": Wrong(listener("authenticate: [users]") + "users: {file: u}\npools:\n  main: {servers: [a], tls: none, login: [apop], check: {user: joe, password: {env: X}}}\n" + VAULT, 7, "pools.main.check.user", "allow_cleartext"),
    "servers twice over": Wrong("pools:\n  a:\n    shared: true\n    servers: [b]\n    srv: example.com\n", 5, "pools.a.srv", "remove one of the two"),
    "a domain that is none": Wrong("pools:\n  a:\n    srv: pop3.example.com:110\n", 2, "pools.a.servers", "srv: example.com", also=("pools.a.srv",)),
    "SRV records behind a tunnel": Wrong("pools:\n  main: {srv: a.example, tunnel: jump}\ntunnels: {jump: {host: a, user: b, known_hosts: k, gssapi: true}}\n", 2, "pools.main.srv", "servers: [mail.example.com]"),
    "users spread by SRV records": Wrong("pools:\n  a:\n    srv: a.example\n    balance: {choose: hash}\n", 4, "pools.a.balance.choose", "shared: true"),
    "a name server by its name": Wrong("names:\n  servers: [ns.example.com]\n", 2, "names.servers[0]", "192.0.2.53"),
    "no time for those who are held": Wrong("routing:\n  default: main\n  hold_wait: soon\n", 3, "routing.hold_wait", "30s"),
    "no time for the next server": Wrong(pool("balance: {next_after: 0s}"), 4, "pools.main.balance.next_after", "5s"),
    "one server twice": Wrong("pools:\n  a:\n    shared: true\n    servers: [a, a]\n", 4, "pools.a.servers[1]", "remove one"),
    "passwords in clear to a backend": Wrong(pool("tls: none"), 4, "pools.main.tls", "allow_cleartext: true"),
    "stored passwords in clear": Wrong(VAULT + pool("tls: none\nlogin: [apop, stored, forward]"), 7, "pools.main.tls", "allow_cleartext: true"),
    "APOP without a vault": Wrong(listener("apop: true") + pool("login: [forward, apop]"), 4, "listeners[0].apop", "section vault", ("pools.main.login[1]",)),
    "APOP with nothing to log in by": Wrong(VAULT + listener("apop: true"), 7, "listeners[0].apop", "login: [forward, stored]"),
    "stored passwords without a vault": Wrong(pool("login: [forward, stored]"), 4, "pools.main.login[1]", "section vault"),
    "users without a users file": Wrong(listener("authenticate: [users]"), 4, "listeners[0].authenticate[0]", "section users"),
    "passthrough without forward": Wrong(VAULT + pool("login: [stored]"), 10, "listeners[0].authenticate", "add forward"),
    "the same judge twice": Wrong(listener("authenticate: [passthrough, passthrough]"), 4, "listeners[0].authenticate[1]", "remove one"),
    "the same login twice": Wrong(pool("login: [forward, forward]"), 4, "pools.main.login[1]", "remove one"),
    "a group without a user": Wrong("process:\n  group: mail\n", 2, "process.group", "user: popproxy"),
    "one attempt longer than all": Wrong("timeouts:\n  connect: 20s\n", 2, "timeouts.connect", "connect_total: 20s"),
    "a failure that is never told": Wrong("authentication:\n  failure_delay: 2m\n", 2, "authentication.failure_delay", "2s"),
    # abuse
    "penalties without a number": Wrong("penalties:\n  address: 20\n", 2, "penalties.address", "free, per_minute"),
    "nobody may be wrong even once": Wrong("penalties:\n  account: {free: 0}\n", 2, "penalties.account.free", "from 1 to 1000000"),
    "a rate with a unit": Wrong("penalties:\n  total: {per_minute: 600/m}\n", 2, "penalties.total.per_minute", "without a unit"),
    "an unknown penalty": Wrong("penalties:\n  answer: ban\n", 2, "penalties.answer", "refuse, tarpit"),
    "a tarpit of no time": Wrong("penalties:\n  tarpit: 0s\n", 2, "penalties.tarpit", "for example 1h"),
    "a host that is allowed": Wrong("penalties:\n  allow: [webmail]\n", 2, "penalties.allow[0]", "192.0.2.0/24"),
    "no session for anybody": Wrong("limits:\n  sessions_per_user: 0\n", 2, "limits.sessions_per_user", "1 or more"),
    "a socket with a long name": Wrong(f"control:\n  socket: /run/{'x' * 100}\n", 2, "control.socket", "a shorter path"),
    "one operator instead of a list": Wrong("control:\n  users: alice\n", 2, "control.users", "write [alice]"),
    "a token in the configuration": Wrong("http:\n  token: 0123456789abcdef\n", 2, "http.token", "name its place"),
    "a URL for a name of the status page": Wrong("http:\n  hosts: ['https://a.example']\n", 2, "http.hosts[0]", "write for example example.com"),
    # console
    "an operator who cannot prove himself": Wrong(
        console("operators: {alice: {role: viewer}}"), 4, "console.operators.alice", "add authorized_keys"
    ),
    "tickets of operators without a keytab": Wrong(
        console("operators: {alice: {principals: [alice@E.COM]}}"), 4, "console.operators.alice.principals", "add keytab"
    ),
    "a principal without a realm": Wrong(
        console("operators: {alice: {principals: [alice]}}"), 4, "console.operators.alice.principals[0]", "@"
    ),
    "an unknown role": Wrong(console("operators: {alice: {role: root}}"), 4, "console.operators.alice.role", "viewer, operator"),
    "a console at a listener's port": Wrong(
        console("operators: {a: {authorized_keys: k}}").replace(":9122", ":110"), 2, "console.listen", "another port"
    ),
    "nobody to come": Wrong(console("operators: {}"), 4, "console.operators", "alice"),
    "an idle time of nothing": Wrong(
        console("operators: {a: {authorized_keys: k}}", "idle: 0s"), 5, "console.idle", "for example 10m"
    ),
    # CAPA
    "a capability of the proxy": Wrong(pool("capabilities: [TOP, SASL]"), 4, "pools.main.capabilities[1]", "remove it"),
    "STLS as a capability": Wrong(pool("capabilities: [STLS]"), 4, "pools.main.capabilities[0]", "remove it"),
    "UTF8 as a capability": Wrong(pool("capabilities: [UTF8]"), 4, "pools.main.capabilities[0]", "remove it"),
    "a small capability": Wrong(pool("capabilities: [top]"), 4, "pools.main.capabilities[0]", "did you mean TOP?"),
    "an unknown capability": Wrong(pool("capabilities: [XYZ]"), 4, "pools.main.capabilities[0]", "TOP, UIDL, EXPIRE"),
    "EXPIRE without days": Wrong(pool("capabilities: [EXPIRE]"), 4, "pools.main.capabilities[0]", "EXPIRE 30"),
    "LOGIN-DELAY with a unit": Wrong(pool("capabilities: ['LOGIN-DELAY 60s']"), 4, "pools.main.capabilities[0]", "LOGIN-DELAY 60"),
    "TOP with an argument": Wrong(pool("capabilities: ['TOP 5']"), 4, "pools.main.capabilities[0]", "write TOP"),
    "a capability twice": Wrong(pool("capabilities: [TOP, TOP]"), 4, "pools.main.capabilities[1]", "remove one"),
    # rules
    "an unknown placeholder": Wrong(rule("domain: a.example\npool: main\nbackend_user: '{usr}'"), 5, "routing.rules[0].backend_user", "did you mean {user}?"),
    "a brace too few": Wrong(rule("domain: a.example\npool: main\nbackend_user: '{user'"), 5, "routing.rules[0].backend_user", "{user}"),
    "a group that is not there": Wrong(rule("regex: '(a)b'\npool: main\nbackend_user: '\\2'"), 5, "routing.rules[0].backend_user", "parentheses"),
    "a group with an endless number": Wrong(rule(f"regex: '(a)b'\npool: main\nbackend_user: '\\g<{'2' * 5000}>'"), 5, "routing.rules[0].backend_user", "parentheses"),
    "a named group that is not there": Wrong(rule("regex: '(?P<n>a)'\npool: main\nbackend_user: '\\g<m>'"), 5, "routing.rules[0].backend_user", "(n)"),
    "a group without a regex": Wrong(rule("user: a\npool: main\nbackend_user: '\\1'"), 5, "routing.rules[0].backend_user", "match with regex"),
    "an empty name at the backend": Wrong(rule("user: a\npool: main\nbackend_user: ''"), 5, "routing.rules[0].backend_user", "remove the line"),
    "a placeholder in the default": Wrong("routing:\n  default_backend_user: '{name}'\n", 2, "routing.default_backend_user", "{user}"),
    "a domain with @": Wrong(rule("domain: '@a.example'\npool: main"), 3, "routing.rules[0].domain", "for example a.example"),
    "a rule that is never reached": Wrong(rule("user: a\npool: main") + "    - {user: A, pool: main}\n", 5, "routing.rules[1].user", "remove one"),
    "a default domain with @": Wrong("authentication:\n  default_domain: '@a.example'\n", 2, "authentication.default_domain", "for example a.example"),
    # directories
    "a directory that is not there": Wrong(listener("authenticate: [users, crop]") + "users: {file: u}\ndirectories:\n  corp: {ldap: {servers: [a], user_dn: 'uid={user}'}}\n", 4, "listeners[0].authenticate[1]", "did you mean corp?"),
    "a directory with a name that is taken": Wrong(listener("authenticate: [users]") + "users: {file: u}\ndirectories:\n  users: {ldap: {servers: [a], user_dn: 'uid={user}'}}\n", 7, "directories.users", "users-directory"),
    "a directory of no kind": Wrong(listener("authenticate: [corp]") + "directories:\n  corp:\n    queue: 5\n", 6, "directories.corp", "write for example ldap:"),
    "a directory that never answers": Wrong(ldap("user_dn: uid={user}").rstrip("\n") + "\n    deadline: 0s\n", 10, "directories.corp.deadline", "for example 10s"),
    "a judge of a domain that is not there": Wrong("authentication:\n  domains:\n    a.example: [crop]\n", 3, "authentication.domains.a.example[0]", "users, kerberos, passthrough"),
    "a domain with Kerberos where a listener has none": Wrong(kerberos("tls: none\ncleartext_networks: [10.0.0.0/8]", more="authentication:\n  domains:\n    a.example: [kerberos]\n"), 13, "authentication.domains.a.example[0]", "add kerberos to the authenticate of pop3"),
    "a domain with @ in it": Wrong("authentication:\n  domains:\n    '@a.example': [passthrough]\n", 3, "authentication.domains.@a.example", "for example a.example"),
    "a domain that nobody judges": Wrong("authentication:\n  domains:\n    a.example: []\n", 3, "authentication.domains.a.example", "at least one entry"),
    "a directory of two kinds": Wrong(ldap("user_dn: uid={user}").rstrip("\n") + "\n    sql: {url: 'sqlite:a', query: 'SELECT :user'}\n", 6, "directories.corp", "a directory of each"),
    "a database's password in its URL": Wrong(sql("url: postgresql://a:hunter2@b/c\nquery: 'SELECT password FROM u WHERE n = :user'"), 8, "directories.shop.sql.url", "password: {file:"),
    "another kind of database": Wrong(sql("url: mysql://a@b/c\nquery: 'SELECT password FROM u WHERE n = :user'"), 8, "directories.shop.sql.url", "for example postgresql://"),
    "no database": Wrong(sql("url: postgresql://a@b\nquery: 'SELECT password FROM u WHERE n = :user'"), 8, "directories.shop.sql.url", "popproxy@db.example.com/mail"),
    "no user of the database": Wrong(sql("url: postgresql://b/c\nquery: 'SELECT password FROM u WHERE n = :user'"), 8, "directories.shop.sql.url", "popproxy@db.example.com/mail"),
    "no file of SQLite": Wrong(sql("url: 'sqlite:'\nquery: 'SELECT password FROM u WHERE n = :user'"), 8, "directories.shop.sql.url", "sqlite:/var/lib/mail/users.db"),
    "a port that is none in a URL": Wrong(sql("url: postgresql://a@b:x/c\nquery: 'SELECT password FROM u WHERE n = :user'"), 8, "directories.shop.sql.url", "for example postgresql://"),
    "a database without a query": Wrong(sql("url: 'postgresql://a@b/c'"), 7, "directories.shop.sql.query", "SELECT password, pool"),
    "a statement that is no query": Wrong(sql("url: 'postgresql://a@b/c'\nquery: DELETE FROM u WHERE n = :user"), 9, "directories.shop.sql.query", "SELECT password"),
    "two statements": Wrong(sql("url: 'postgresql://a@b/c'\nquery: 'SELECT :user; SELECT 2'"), 9, "directories.shop.sql.query", "write one SELECT"),
    "a query for everybody": Wrong(sql("url: 'postgresql://a@b/c'\nquery: SELECT password FROM u"), 9, "directories.shop.sql.query", "put :user or :local into it"),
    "a query with a name that is none": Wrong(sql("url: 'postgresql://a@b/c'\nquery: 'SELECT :user, :name'"), 9, "directories.shop.sql.query", "write :user, :local or :domain"),
    "a query with a value in quotes": Wrong(sql("url: 'postgresql://a@b/c'\nquery: SELECT password FROM u WHERE n = ':user'"), 9, "directories.shop.sql.query", "without quotes"),
    "hashes in clear from a database": Wrong(sql("url: 'postgresql://a@b/c'\nquery: 'SELECT password FROM u WHERE n = :user'\ntls: none"), 10, "directories.shop.sql.tls", "allow_cleartext: true"),
    "no way to an entry": Wrong(ldap("scope: one"), 7, "directories.corp.ldap", "user_dn: uid={local}"),
    "a base without a filter": Wrong(ldap("base: dc=a"), 9, "directories.corp.ldap.base", "add filter: "),
    "a filter without a base": Wrong(ldap("filter: (mail={user})"), 9, "directories.corp.ldap.filter", "add base: "),
    "a filter for everybody": Wrong(ldap("base: dc=a\nfilter: (mail=*)"), 10, "directories.corp.ldap.filter", "{user} or {local}"),
    "a filter with a parenthesis too few": Wrong(ldap("base: dc=a\nfilter: (&(a=b)(mail={user})"), 10, "directories.corp.ldap.filter", "(objectClass=person)"),
    "a filter without parentheses": Wrong(ldap("base: dc=a\nfilter: mail={user}"), 10, "directories.corp.ldap.filter", "(objectClass=person)"),
    "a filter with a bare backslash": Wrong(ldap("base: dc=a\nfilter: (mail={user}\\)"), 10, "directories.corp.ldap.filter", "\\5c"),
    "a filter with another placeholder": Wrong(ldap("base: dc=a\nfilter: (&(a={user})(b={usr}))"), 10, "directories.corp.ldap.filter", "did you mean {user}?"),
    "one DN for everybody": Wrong(ldap("user_dn: cn=admin,dc=a"), 9, "directories.corp.ldap.user_dn", "{user} or {local}"),
    "attributes of a logon name": Wrong(ldap("user_dn: '{user}'\nattributes: {server: mailHost}"), 10, "directories.corp.ldap.attributes", "add base and filter"),
    "passwords in clear to a directory": Wrong(ldap("user_dn: uid={user}\ntls: none"), 10, "directories.corp.ldap.tls", "allow_cleartext: true"),
    "a wrong word for TLS to a directory": Wrong(ldap("user_dn: uid={user}\ntls: ldaps"), 10, "directories.corp.ldap.tls", "did you mean implicit?"),
    "STLS to a directory": Wrong(ldap("user_dn: uid={user}\ntls: stls"), 10, "directories.corp.ldap.tls", "did you mean starttls?"),
    "a directory's password in the file": Wrong(ldap("user_dn: uid={user}\naccount: {dn: cn=a, password: hunter2}"), 10, "directories.corp.ldap.account.password", "{file: "),
    # Kerberos
    "tickets without a keytab": Wrong(listener("gssapi: true"), 4, "listeners[0].gssapi", "add the section kerberos", ("listeners[0].gssapi",)),
    "a KDC without a keytab": Wrong(listener("authenticate: [kerberos]"), 4, "listeners[0].authenticate[0]", "add the section kerberos"),
    "KPOP without a keytab": Wrong(listener("protocol: kpop"), 4, "listeners[0].protocol", "write protocol: pop3", ("listeners[0].protocol",)),
    "KPOP under TLS": Wrong(kerberos("protocol: kpop\ntls: implicit"), 5, "listeners[0].tls", "write tls: stls"),
    "KPOP with APOP": Wrong(kerberos("protocol: kpop\napop: true") + VAULT, 5, "listeners[0].apop", "apop: false"),
    "KPOP with GSSAPI": Wrong(kerberos("protocol: kpop\ngssapi: true"), 5, "listeners[0].gssapi", "gssapi: false"),
    "tickets where only passwords get in": Wrong(kerberos("gssapi: true", "pools:\n  main: {servers: [a]}"), 4, "listeners[0].gssapi", "add kerberos-delegated, master or stored"),
    "tickets bound to no TLS": Wrong(kerberos("gssapi: true\ntls: none", more="  channel_binding: require\n"), 4, "listeners[0].gssapi", "channel_binding: allow"),
    "a principal of another service": Wrong(kerberos("gssapi: true", principal="imap/a@A"), 7, "kerberos.principals[0]", "pop/mail.example.com@EXAMPLE.COM"),
    "a principal without a host": Wrong(kerberos("gssapi: true", principal="pop/@A"), 7, "kerberos.principals[0]", "pop/HOST@REALM"),
    "a keytab of a listener's own, and no section": Wrong(listener("kerberos: {keytab: k}"), 4, "listeners[0].kerberos", "add the section kerberos"),
    "a principal of another service at a listener": Wrong(kerberos("gssapi: true\nkerberos: {principals: [imap/a@A]}"), 5, "listeners[0].kerberos.principals[0]", "pop/mail.example.com@EXAMPLE.COM"),
    "a realm at a listener that is not listed": Wrong(kerberos("gssapi: true\nkerberos: {realms: [EXAMPEL.COM]}", realms="[{realm: EXAMPLE.COM}]"), 5, "listeners[0].kerberos.realms[0]", "did you mean EXAMPLE.COM?"),
    "a realm at a listener that is like none": Wrong(kerberos("gssapi: true\nkerberos: {realms: [OTHER]}"), 5, "listeners[0].kerberos.realms[0]", "name one of A"),
    "a realm at a listener twice": Wrong(kerberos("gssapi: true\nkerberos: {realms: [A, A]}"), 5, "listeners[0].kerberos.realms[1]", "remove one"),
    "a realm at a listener with its rules": Wrong(kerberos("gssapi: true\nkerberos: {realms: [{realm: A}]}"), 5, "listeners[0].kerberos.realms[0]", "write for example EXAMPLE.COM"),
    "no realms": Wrong(kerberos("gssapi: true", realms="[]"), 9, "kerberos.realms", "realm: EXAMPLE.COM"),
    "a realm twice": Wrong(kerberos("gssapi: true", realms="[{realm: A}, {realm: A}]"), 9, "kerberos.realms[1].realm", "remove one"),
    "a principal rule with two conditions": Wrong(kerberos("gssapi: true", more="  rules: [{regex: a, mailbox: b, file: c}]\n"), 10, "kerberos.rules[0]", "file: principals.map"),
    "a principal rule without mailbox": Wrong(kerberos("gssapi: true", more="  rules: [{regex: a}]\n"), 10, "kerberos.rules[0]", "mailbox: "),
    "a mailbox of a group that is not there": Wrong(kerberos("gssapi: true", more="  rules: [{regex: a, mailbox: '\\1'}]\n"), 10, "kerberos.rules[0].mailbox", "parentheses"),
    "no layer": Wrong(kerberos("gssapi: true", more="  layers: []\n"), 10, "kerberos.layers", "[integrity, confidentiality]"),
    "an unknown layer": Wrong(kerberos("gssapi: true", more="  layers: [privacy]\n"), 10, "kerberos.layers[0]", "write one of none, integrity"),
    "a name of our own that is empty": Wrong(kerberos("gssapi: true", more="  client_principal: ''\n"), 10, "kerberos.client_principal", "remove the line"),
    "less than nobody": Wrong(kerberos("gssapi: true", more="  delegation_cache_size: -1\n"), 10, "kerberos.delegation_cache_size", "0"),
    "an unknown mechanism": Wrong(sasl("[SCRAM-SHA-512]"), 4, "listeners[0].sasl[0]", "SCRAM-SHA-256, SCRAM-SHA-256-PLUS"),
    "PLAIN, which is always there": Wrong(sasl("[PLAIN]"), 4, "listeners[0].sasl[0]", "write one of CRAM-MD5"),
    "a mechanism twice": Wrong(sasl("[CRAM-MD5, CRAM-MD5]") + VAULT, 4, "listeners[0].sasl[1]", "remove one"),
    "CRAM-MD5 without secrets": Wrong(sasl("[CRAM-MD5]"), 4, "listeners[0].sasl[0]", "add the section vault"),
    "SCRAM without verifiers": Wrong(sasl("[SCRAM-SHA-256]"), 4, "listeners[0].sasl[0]", "authenticate: [users]"),
    "SCRAM without a key": Wrong(sasl("[SCRAM-SHA-256]\nauthenticate: [users]") + "users: {file: u}\n", 4, "listeners[0].sasl[0]", "decoy_key: {file: "),
    "PLUS without TLS": Wrong(sasl("[SCRAM-SHA-1-PLUS]\ntls: none\ncleartext_networks: [10.0.0.0/8]") + VAULT, 4, "listeners[0].sasl[0]", "tls: stls, or SCRAM-SHA-1"),
    "mechanisms where only passwords get in": Wrong(listener("sasl: [CRAM-MD5]") + VAULT, 4, "listeners[0].sasl", "add master or stored"),
    "certificates that nobody asks for": Wrong(sasl("[EXTERNAL]") + EXTERNAL, 4, "listeners[0].sasl[0]", "add client_ca: "),
    "certificates without TLS": Wrong(sasl("[EXTERNAL]\ntls: none\ncleartext_networks: [10.0.0.0/8]") + EXTERNAL, 4, "listeners[0].sasl[0]", "write tls: stls"),
    "certificates of nobody": Wrong(sasl("[EXTERNAL]\nclient_ca: ca.pem"), 4, "listeners[0].sasl[0]", "external: {rules: [{take: email}]}"),
    "a part that certificates do not have": Wrong("external:\n  rules: [{take: mail}]\n", 2, "external.rules[0].take", "did you mean email?"),
    "a certificate rule with two conditions": Wrong("external:\n  rules: [{take: email, regex: a, file: b}]\n", 2, "external.rules[0]", "remove regex and user"),
    "a user without a regex": Wrong("external:\n  rules: [{take: email, user: a}]\n", 2, "external.rules[0]", "write for example regex: "),
    "a fingerprint as a user": Wrong("external:\n  rules: [{take: fingerprint}]\n", 2, "external.rules[0]", "add file: certificates.map"),
    "a user of a group that is not there": Wrong("external:\n  rules: [{take: email, regex: a, user: '\\1'}]\n", 2, "external.rules[0].user", "parentheses"),
    "a certificate rule that is no regular expression": Wrong("external:\n  rules: [{take: email, regex: '('}]\n", 2, "external.rules[0].regex", "put a backslash"),
    "a mechanism that there is not": Wrong("policy:\n  - {mechanisms: [APOB]}\n", 2, "policy[0].mechanisms[0]", "did you mean APOP?"),
    "a policy about nothing": Wrong("policy:\n  - {until: 2027-01-31}\n", 2, "policy[0].mechanisms", "[APOP, CRAM-MD5]"),
    "a mechanism given up twice": Wrong("policy:\n  - {mechanisms: [USER, USER]}\n", 2, "policy[0].mechanisms[1]", "remove one"),
    "a day that there is not": Wrong("policy:\n  - {mechanisms: [USER], until: 2027-02-29}\n", 2, "policy[0].until", "write for example 2027-06-30"),
    "a day as others write it": Wrong("policy:\n  - {mechanisms: [USER], until: 31.1.2027}\n", 2, "policy[0].until", "write year, month and day"),
    "a policy for a listener that there is not": Wrong("policy:\n  - {mechanisms: [USER], listeners: [pop]}\n", 2, "policy[0].listeners[0]", "did you mean pop3?"),
    "an address for a domain of a policy": Wrong("policy:\n  - {mechanisms: [USER], domains: ['@a.example']}\n", 2, "policy[0].domains[0]", "write a.example"),
    "tokens of nobody": Wrong(sasl("[XOAUTH2]"), 4, "listeners[0].sasl[0]", "oauth: {issuers: [{issuer: "),
    "tokens without TLS": Wrong(sasl("[OAUTHBEARER]\ntls: none\ncleartext_networks: [10.0.0.0/8]") + oauth(), 4, "listeners[0].sasl[0]", "write tls: stls"),
    "tokens where only what clients bring gets in": Wrong(listener("sasl: [XOAUTH2]") + oauth() + "pools:\n  main: {servers: [a], login: [forward, kerberos-forwarded]}\nkerberos: {keytab: k, principals: [pop/a@A], replay_cache: r, realms: [{realm: A}]}\n", 4, "listeners[0].sasl", "add master or stored"),
    "tokens for anybody": Wrong(oauth("audience: []") + sasl("[XOAUTH2]"), 4, "oauth.issuers[0].audience", "audience: [popproxy]"),
    "an issuer without TLS": Wrong(oauth("jwks: http://a.example/keys") + sasl("[XOAUTH2]"), 4, "oauth.issuers[0].jwks", "begins with https://"),
    "an issuer with a password": Wrong(oauth("jwks: https://me:secret@a.example/") + sasl("[XOAUTH2]"), 4, "oauth.issuers[0].jwks", "without them"),
    "signatures that everybody can make": Wrong(oauth("algorithms: [HS256]") + sasl("[XOAUTH2]"), 4, "oauth.issuers[0].algorithms[0]", "RS256"),
    "an issuer twice": Wrong(oauth("domains: [a.example]", "domains: [b.example]") + sasl("[XOAUTH2]"), 6, "oauth.issuers[1].issuer", "remove one"),
    "an address for a domain of an issuer": Wrong(oauth("domains: [x@a.example]") + sasl("[XOAUTH2]"), 4, "oauth.issuers[0].domains[0]", "write a.example"),
    "no time for an issuer": Wrong("oauth:\n  deadline: 0s\n  issuers: [{issuer: 'https://a.example', audience: [p]}]\n" + sasl("[XOAUTH2]"), 2, "oauth.deadline", "write for example 5s"),
    "no certificate rule": Wrong("external:\n  rules: []\n", 2, "external.rules", "take: email"),
    "RPOP from nowhere": Wrong(proofs("rpop: id") + VAULT, 4, "listeners[0].rpop", "add the section rpop"),
    "RPOP without ids": Wrong(proofs("rpop: id") + RPOP, 4, "listeners[0].rpop", "add the section vault"),
    "RPOP without trusted machines": Wrong(proofs("rpop: rfc") + RPOP, 4, "listeners[0].rpop", "add hosts: "),
    "RPOP where only passwords get in": Wrong(listener("rpop: id") + RPOP + VAULT, 4, "listeners[0].rpop", "add master or stored"),
    "RPOP behind KPOP": Wrong(kerberos("protocol: kpop\nrpop: id") + RPOP + VAULT, 5, "listeners[0].rpop", "remove it"),
    "RPOP as a switch": Wrong(proofs("rpop: true"), 4, "listeners[0].rpop", "write one of off, rfc, id"),
    "RPOP without networks": Wrong("rpop: {}\n", 1, "rpop.networks", "192.0.2.0/28"),
    "RPOP of no network": Wrong("rpop:\n  networks: [10.0.0.1/24]\n", 2, "rpop.networks[0]", "write 10.0.0.0/24"),
    "mechanisms behind KPOP": Wrong(kerberos("protocol: kpop\nsasl: [CRAM-MD5]") + VAULT, 5, "listeners[0].sasl", "remove it"),
    "a deadline of nothing": Wrong(kerberos("gssapi: true", more="  deadline: 0s\n"), 10, "kerberos.deadline", "for example 10s"),
    "a master user that is nobody": Wrong(pool("login: [forward, master]"), 4, "pools.main.login[1]", "add master: {user:"),
    "no certificate for external": Wrong(pool("login: [forward, external]"), 4, "pools.main.login[1]", "add certificate: {cert:"),
    "external without TLS": Wrong(pool("tls: none\nlogin: [external]\ncertificate: {cert: a.pem}"), 4, "pools.main.tls", "write tls: stls", also=("listeners[0].authenticate",)),
    "access tokens from nowhere": Wrong(pool("login: [forward, xoauth2]"), 4, "pools.main.login[1]", "add xoauth2: {endpoint:"),
    "access tokens without a secret": Wrong(pool("login: [forward, xoauth2]\nxoauth2: {endpoint: 'https://a/token', client_id: a}"), 5, "pools.main.xoauth2", "client_secret: {file:"),
    "a token endpoint in clear": Wrong(pool("login: [forward, xoauth2]\nxoauth2: {endpoint: 'http://a/token', client_id: a, client_secret: {env: A}}"), 5, "pools.main.xoauth2.endpoint", "https://"),
    "an unknown grant": Wrong(pool("login: [forward, xoauth2]\nxoauth2: {endpoint: 'https://a/token', client_id: a, client_secret: {env: A}, grant: password}"), 5, "pools.main.xoauth2.grant", "client_credentials, refresh_token"),
    "refresh tokens without the vault": Wrong(pool("login: [forward, xoauth2]\nxoauth2: {endpoint: 'https://a/token', client_id: a, grant: refresh_token}"), 5, "pools.main.xoauth2.grant", "add the section vault"),
    "a token later than the login": Wrong(pool("login: [forward, xoauth2]\nxoauth2: {endpoint: 'https://a/token', client_id: a, client_secret: {env: A}, deadline: 2m}"), 5, "pools.main.xoauth2.deadline", "write for example 10s"),
    "access tokens in clear": Wrong(pool("tls: none\nlogin: [xoauth2]\nxoauth2: {endpoint: 'https://a/token', client_id: a, client_secret: {env: A}}"), 4, "pools.main.tls", "allow_cleartext: true", also=("listeners[0].authenticate",)),
    "a master user's password in the file": Wrong(pool("login: [forward, master]\nmaster: {user: a, password: b}"), 5, "pools.main.master.password", "name its place"),
    "a ticket without a keytab": Wrong(pool("login: [forward, kerberos-service]"), 4, "pools.main.login[1]", "add the section kerberos"),
    "a server's principal that is none": Wrong(pool("kerberos: {principal: pop@a}"), 4, "pools.main.kerberos.principal", "pop/{host}"),
    "an unknown layer towards a server": Wrong(pool("kerberos: {layers: [tls]}"), 4, "pools.main.kerberos.layers[0]", "write one of none, integrity"),
    "no layer towards a server": Wrong(pool("kerberos: {layers: []}"), 4, "pools.main.kerberos.layers", "[confidentiality, integrity]"),
    "an unknown way to be a master user": Wrong(pool("login: [forward, master]\nmaster: {user: a, password: {env: A}, mechanism: login}"), 5, "pools.main.master.mechanism", "user, plain"),
    "a ticket by no known way": Wrong(pool("login: [kerberos]"), 4, "pools.main.login[0]", "kerberos-forwarded"),
    "a service without a scheme": Wrong(web("url: 127.0.0.1:9000/auth"), 8, "directories.web.http.url", "http://127.0.0.1:9000/auth"),
    "a service of another scheme": Wrong(web("url: ftp://a.example/auth"), 8, "directories.web.http.url", "http://127.0.0.1:9000/auth"),
    "a service at no socket": Wrong(web("url: http://unix:auth.sock"), 8, "directories.web.http.url", "http://unix:/run/auth.sock:/auth"),
    "a password in the URL of a service": Wrong(web("url: https://a:b@auth.example.com/"), 8, "directories.web.http.url", "a secret in headers:"),
    "a service in clear": Wrong(web("url: http://auth.example.com/"), 8, "directories.web.http.url", "write https://"),
    "a header's value in the file": Wrong(web("url: http://localhost/\nheaders: {X-Auth-Key: sesame}"), 9, "directories.web.http.headers.X-Auth-Key", "name its place"),
    "a header with a space": Wrong(web("url: http://localhost/\nheaders: {X Key: {env: A}}"), 9, "directories.web.http.headers.X Key", "it must match"),
    "a header of popproxy's own": Wrong(web("url: http://localhost/\nheaders: {Auth-User: {env: A}}"), 9, "directories.web.http.headers", "X-Auth-Key"),
    "trouble in no regular expression": Wrong(web("url: http://localhost/\ntemporary: '('"), 9, "directories.web.http.temporary", "put a backslash"),
    "APOP where nobody knows secrets": Wrong(proofs("apop: true\nauthenticate: [corp]") + "directories:\n  corp:\n    sql: {url: 'sqlite:a', query: 'SELECT password FROM a WHERE b = :user'}\n", 4, "listeners[0].apop", "add the section vault"),
    "a service of PAM that is a path": Wrong("directories:\n  system:\n    pam: {service: ../login}\n", 3, "directories.system.pam.service", "for example login"),
    "PAM for one user": Wrong("directories:\n  system:\n    pam: {user: alice}\n", 3, "directories.system.pam.user", "put {user} or {local}"),
    "a user of PAM with an unknown part": Wrong("directories:\n  system:\n    pam: {user: '{local}{realm}'}\n", 3, "directories.system.pam.user", "{user}, {local}"),
    "a cache without a unit": Wrong("directories:\n  system:\n    pam: {}\n    cache: 30\n", 4, "directories.system.cache", "30s"),
    "a directory for routing that is not there": Wrong("directories:\n  corp:\n    sql: {url: 'sqlite:a', query: 'SELECT pool FROM a WHERE b = :user'}\nrouting:\n  default: main\n  directories: [crop]\n", 6, "routing.directories[0]", "did you mean corp?"),
    "PAM for routing": Wrong("directories:\n  system:\n    pam: {}\nrouting:\n  default: main\n  directories: [system]\n", 6, "routing.directories[0]", "name another"),
    "a directory for routing that knows no places": Wrong(ldap("user_dn: uid={local},dc=a") + "routing:\n  default: main\n  directories: [corp]\n", 12, "routing.directories[0]", "mailHost"),
    "a directory for routing twice": Wrong("directories:\n  corp:\n    sql: {url: 'sqlite:a', query: 'SELECT pool FROM a WHERE b = :user'}\nrouting:\n  default: main\n  directories: [corp, corp]\n", 6, "routing.directories[1]", "remove one"),
    "a source that is no address": Wrong(pool("source_address: mail.example.com"), 4, "pools.main.source_address", "192.0.2.5"),
    "a pin in hexadecimal": Wrong(pool("pin: [deadbeef]"), 4, "pools.main.pin[0]", "it must match"),
    "a tunnel that nobody knows": Wrong(tunnel("key: {env: K}").replace("tunnel: jump", "tunnel: jumb"), 2, "pools.main.tunnel", "did you mean jump?"),
    "a tunnel without a login": Wrong(tunnel("port: 2222"), 4, "tunnels.jump", "gssapi: true"),
    "a tunnel without known hosts": Wrong("tunnels:\n  jump: {host: a, user: b, key: {env: K}}\n", 2, "tunnels.jump.known_hosts", "known_hosts: /etc/popproxy/known_hosts"),
    "a tunnel through itself": Wrong(tunnel("key: {env: K}\nvia: jump"), 9, "tunnels.jump.via", "without this one"),
    "a tunnel for a server that the pool has not": Wrong(tunnel("key: {env: K}").replace("tunnel: jump", "server_tunnels: {b: jump}"), 2, "pools.main.server_tunnels.b", "did you mean a?"),
    "a server's tunnel that nobody knows": Wrong(tunnel("key: {env: K}").replace("tunnel: jump", "tunnel: jump, server_tunnels: {a: jumb}"), 2, "pools.main.server_tunnels.a", "did you mean jump?"),
    "a tunnel and a SOCKS proxy": Wrong(tunnel("key: {env: K}").replace("tunnel: jump", "tunnel: jump, socks: {server: s}"), 2, "pools.main.socks", "keep one of them"),
    "a SOCKS proxy without an address": Wrong("pools:\n  main: {servers: [a], socks: {}}\n", 2, "pools.main.socks.server", "server: socks.example.com"),
    "a SOCKS login without a password": Wrong("pools:\n  main: {servers: [a], socks: {server: s, user: u}}\n", 2, "pools.main.socks", "add password:"),
    "a passphrase for nothing": Wrong(tunnel("gssapi: true\npassphrase: {env: P}"), 9, "tunnels.jump.passphrase", "or add key"),
    "a tunnel that never waits": Wrong(tunnel("key: {env: K}\nretry: 1m"), 9, "tunnels.jump.retry", "shorter than retry_longest"),
    # the audit log
    "hashes without a key": Wrong("audit:\n  unique_ids: hashed\n", 2, "audit.unique_ids", "or write omitted"),
    "rotation of standard output": Wrong("audit:\n  rotate_interval: 1d\n", 2, "audit.rotate_interval", "add audit.file"),
    "a size of standard output": Wrong("audit:\n  rotate_size: 1GiB\n", 2, "audit.rotate_size", "add audit.file"),
    "files too small": Wrong("audit:\n  file: a\n  rotate_size: 1KiB\n", 3, "audit.rotate_size", "for example 1GiB"),
    "files too short": Wrong("audit:\n  file: a\n  rotate_interval: 1s\n", 3, "audit.rotate_interval", "for example 1d"),
    "a copy of what goes there": Wrong("audit:\n  stdout: true\n", 2, "audit.stdout", "add audit.file"),
    "a CA for syslog in clear": Wrong("audit:\n  syslog: {server: a, tls: false, ca: b}\n", 2, "audit.syslog.ca", "tls: true"),
    "signatures without pause": Wrong("audit:\n  checkpoint_interval: 0s\n", 2, "audit.checkpoint_interval", "1s or more"),
    "a Redis by no known way": Wrong(shared("url: http://a"), 2, "shared_state.url", "redis://redis.example.com:6379"),
    "a Redis with its password in the URL": Wrong(shared("url: redis://u:p@a"), 2, "shared_state.url", "username and password"),
    "several Redis that are nothing together": Wrong(shared("url: redis://a,b"), 2, "shared_state.url", "redis+cluster://"),
    "sentinels of nobody": Wrong(shared("url: redis+sentinel://a,b"), 2, "shared_state.url", "redis+sentinel://a,b/mymaster"),
    "a cluster with a database": Wrong(shared("url: redis+cluster://a/2"), 2, "shared_state.url", "remove it"),
    "a Redis with a database of letters": Wrong(shared("url: redis://a/mail"), 2, "shared_state.url", "redis://a/0"),
    "a socket of Redis without a path": Wrong(shared("url: unix://redis.sock"), 2, "shared_state.url", "unix:///run/redis/redis.sock"),
    "a Redis without the common secret": Wrong("shared_state:\n  url: redis://a\n", 1, "shared_state.key", "key: {file: /etc/popproxy/shared.key}"),
    "a Redis that is waited for too long": Wrong(shared("url: redis://localhost\n  timeout: 30s"), 3, "shared_state.timeout", "500ms"),
    "a replica that dies while it waits": Wrong(shared("url: redis://localhost\n  timeout: 2s\n  lifetime: 5s"), 4, "shared_state.lifetime", "four times timeout"),
    "a replica that lives a moment": Wrong(shared("url: redis://localhost\n  lifetime: 1s"), 3, "shared_state.lifetime", "15s"),
    "a Redis user without a password": Wrong(shared("url: redis://localhost\n  username: u"), 3, "shared_state.username", "add password:"),
    "a key without its certificate": Wrong(shared("url: rediss://a\n  cert_key: k"), 3, "shared_state.cert_key", "add cert"),
    "a prefix with a brace": Wrong(shared("url: redis://localhost\n  prefix: '{a}'"), 3, "shared_state.prefix", "must match"),
    # YAML itself
    "a tab": Wrong("audit:\n\tfile: a\n", 2, "", "replace the tab by spaces"),
    "a tab behind spaces": Wrong("audit:\n  file: a\n \ton_error: open\n", 3, "", "replace the tab by spaces"),
    "a key twice": Wrong("audit:\n  file: a\n  file: b\n", 3, "audit.file", "keep one of the two"),
    "a section twice": Wrong("audit: {}\nlogging: {}\naudit: {}\n", 3, "audit", "keep one of the two"),
    "a key that is a list": Wrong("[a, b]: c\n", 1, "", "plain word before the colon"),
    "a key that is missing": Wrong("audit:\n  ~: c\n", 2, "audit", "write key: value"),
    "a quotation mark left open": Wrong("audit:\n  file: 'a\n", 2, "", "close it with the mark"),
    "a bracket left open": Wrong("pools:\n  a:\n    servers: [a, b\n", 3, "", "write [one, two]"),
    "a brace left open": Wrong("pools:\n  a: {servers: [a]\n", 2, "", "write {key: value}"),
    "a line that is indented too far": Wrong("audit:\n  file: a\n    on_error: open\n", 3, "", "indent it with spaces"),
    "a line that is not indented enough": Wrong("audit:\n    file: a\n  on_error: open\n", 3, "", "indent it with spaces"),
    "a colon in a text": Wrong(listener("banner: POP3: ready"), 4, "", "put the text in 'quotes'"),
    "a line without a colon": Wrong("audit:\n  file\n  on_error: open\n", 2, "", "write key: value"),
    "a text that begins with @": Wrong(rule("domain: @a.example\npool: main"), 3, "", "put the text in 'quotes'"),
    "a text that begins with *": Wrong("listeners:\n  - name: a\n    listen: [*:110]\n", 3, "", "put the text in 'quotes'"),
    "an alias to nothing": Wrong("audit: *there\n", 1, "", "put the text in 'quotes'"),
    "a second document": Wrong("audit: {}\n---\nlogging: {}\n", 2, "", "remove the line ---"),
    "a tag": Wrong("audit:\n  file: !!python/name:os.system a\n", 2, "audit.file", "remove it"),
    "a merge of a word": Wrong("audit:\n  <<: word\n", 2, "audit.<<", "<<: *name"),
    "nested without end": Wrong("audit: " + "[" * 100 + "\n", 1, "", "remove the surplus"),
    "a backslash in double quotes": Wrong('audit:\n  file: "C:\\path"\n', 2, "", "'single quotes'"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_configuration_is_told_by_line_key_and_cure(wrong: Wrong) -> None:
    raw = complete(wrong.text)
    told = problems(raw)
    assert [problem.key for problem in told] == [wrong.key, *wrong.also], list(map(str, told))
    assert told[0].where == f"etc/popproxy.yaml:{wrong.line}"
    assert wrong.cure in told[0].cure
    assert "\n" not in str(told[0])
    assert str(told[0]) == f"{told[0].where}: {told[0].key + ': ' if told[0].key else ''}{told[0].what}; {told[0].cure}"


def test_the_table_has_a_hundred_wrong_configurations() -> None:
    assert len(WRONG) >= 100
