"""What would become of somebody who logs in: each step with its line, by the rules that decide about sessions."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from popproxy.app.explain import NoSuchListener, explain
from popproxy.app.explanation import Explanation
from popproxy.config.loader import Loaded, load_bytes
from popproxy.errors import ConfigError
from popproxy.state.order_file import FILE as ORDERS_FILE
from popproxy.state.order_file import encode
from popproxy.state.orders import Closed, Hold, Move, Orders
from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault

FILE = """\
listeners:
  - {name: pop3, listen: [":110"], tls: none, cleartext_networks: [127.0.0.1], authenticate: [users, kerberos]}
  - {name: gss, listen: [":111"], tls: none, gssapi: true}
  - {name: kpop, listen: [":1109"], tls: none, protocol: kpop, kerberos: {realms: [PARTNER.TEST]}}
kerberos:
  keytab: keytab
  principals: [pop/mail.a.test@A.TEST]
  replay_cache: replay
  realms:
    - {realm: A.TEST, domain: a.test, instances: [mail]}
    - {realm: PARTNER.TEST, by_name: false}
  rules:
    - {file: principals.map}
    - {regex: "u(.*)@A\\\\.TEST", mailbox: "\\\\1@a.test"}
users: {file: users}
authentication: {default_domain: a.test}
routing:
  rules:
    - {user: boss@a.test, pool: fast}
    - {domain: b.test, pool: fast, backend_user: "{local}"}
  default: slow
pools:
  slow:
    servers: [old.a.test]
    login: [forward, stored, master]
    master: {user: proxy, password: {file: nowhere}}
  fast: {servers: ["one.a.test:1110", two.a.test], shared: true, tls: implicit, ca: ca.pem, login: [forward]}
vault: {file: vault, key: {file: vault.key}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Loaded:
    """The configuration above, and the files that it names."""
    (tmp_path / "principals.map").write_text("root/mail@A.TEST boss@a.test\n")
    (tmp_path / "users").write_text("closed:!\nknown:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\n")
    raw = generate_key()
    (tmp_path / "vault.key").write_text(raw)
    (tmp_path / "vault.key").chmod(0o600)
    Vault.create(tmp_path / "vault", Secret(raw)).set("stored@a.test", Secret("canary-stored"))
    return load_bytes(FILE.encode(), tmp_path / "popproxy.yaml")


def steps(found: Explanation, stage: str) -> list[tuple[str, str]]:
    return [(one.step.outcome, one.step.text) for one in found.steps if one.stage == stage]


def lines(loaded: Loaded, found: Explanation, stage: str) -> list[int]:
    return [int(loaded.where(one.step.key).rpartition(":")[2]) for one in found.steps if one.stage == stage]


def test_a_principal_from_its_name_to_the_server(site: Loaded) -> None:
    found = explain(site, "alice@A.TEST")
    assert (found.kind, found.listener, found.verdict) == ("principal", "gss", "let in")
    assert steps(found, "name") == [("done", "alice@A.TEST is taken for a principal: A.TEST is one of kerberos.realms")]
    assert steps(found, "listener") == [("done", "gss takes tickets by GSSAPI (so does kpop)")]
    table = site.path.parent / "principals.map"
    assert steps(found, "identity") == [
        ("done", "realm A.TEST is listed"),
        ("passed", f"table {table}: no entry"),
        ("passed", r"regex u(.*)@A\.TEST: no match"),
        ("done", "by name: alice@a.test"),
    ]
    assert lines(site, found, "identity") == [10, 13, 14, 10]
    assert found.mailbox == "alice@a.test"
    assert steps(found, "account") == [("passed", f"not in {site.path.parent}/users, so not disabled")]
    assert steps(found, "route") == [
        ("passed", "user boss@a.test: no match"),
        ("passed", "domain b.test: no match"),
        ("done", "everybody else: pool slow, there alice@a.test"),
    ]
    assert lines(site, found, "route") == [19, 20, 21]
    assert steps(found, "server") == [("done", "old.a.test:110, the only one")]
    assert steps(found, "link") == [("done", "STLS, the certificate is verified by the system's authorities")]
    assert steps(found, "login") == [
        ("passed", "forward: the client sends no password"),
        ("passed", "stored: the vault has no password of this user"),
        ("done", "master: USER alice@a.test*proxy and PASS"),
    ]
    assert lines(site, found, "login") == [25, 25, 25]
    assert (found.pool, found.backend_user, found.strategy) == ("slow", "alice@a.test", "master")
    assert found.result == "let in at pool slow as alice@a.test by master, if the ticket is accepted"


def test_rules_that_match_end_the_search(site: Loaded) -> None:
    found = explain(site, "uanna@A.TEST")
    assert found.mailbox == "anna@a.test"
    assert steps(found, "identity")[-1] == ("done", r"regex u(.*)@A\.TEST: anna@a.test")
    found = explain(site, "root/mail@A.TEST")
    assert [outcome for outcome, _ in steps(found, "identity")] == ["done", "done"]
    assert found.pool == "fast"
    assert steps(found, "server") == [("done", "one.a.test:1110, tried first"), ("done", "two.a.test:995, then")]
    assert steps(found, "link") == [("done", f"TLS, the certificate is verified by {site.path.parent}/ca.pem")]
    assert found.verdict == "not set up"
    assert steps(found, "login")[-1] == ("refused", "refused: no way to log in at the pool fast")


def test_an_instance_stands_for_the_user(site: Loaded) -> None:
    found = explain(site, "alice/mail@A.TEST")
    assert ("done", "instance /mail is allowed and stands for alice") in steps(found, "identity")
    assert found.mailbox == "alice@a.test"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("alice/admin@A.TEST", "instance /admin is not allowed in realm A.TEST"),
        ("alice@ELSEWHERE.TEST", "realm ELSEWHERE.TEST is not listed (listed: A.TEST, PARTNER.TEST)"),
        ("alice@PARTNER.TEST", "no rule matches, and realm PARTNER.TEST maps none by name"),
        ("a/b/c@A.TEST", "not a principal that could have a mailbox"),
    ],
)
def test_principals_without_a_mailbox(site: Loaded, name: str, why: str) -> None:
    found = explain(site, name)
    assert (found.kind, found.verdict, found.result) == ("principal", "refused", why)
    assert found.steps[-1].stage == "identity"
    assert found.steps[-1].step.outcome == "refused"


def test_the_realms_of_a_listener(site: Loaded) -> None:
    found = explain(site, "alice@A.TEST", "kpop")
    assert found.result == "realm A.TEST is not listed (listed: PARTNER.TEST)"
    assert steps(explain(site, "alice@PARTNER.TEST", "kpop"), "listener") == [
        ("done", "kpop takes tickets by KPOP (so does gss)")
    ]


def test_a_stored_secret_comes_before_the_master(site: Loaded) -> None:
    found = explain(site, "stored@A.TEST")
    assert found.strategy == "stored"
    assert [text for _, text in steps(found, "login")] == [
        "forward: the client sends no password",
        "stored: USER stored@a.test and PASS",
        "master: USER stored@a.test*proxy and PASS, if what is above cannot be used there",
    ]
    assert "canary" not in repr(found)


@pytest.mark.parametrize("name", ["closed@A.TEST", "uclosed@A.TEST"])
def test_a_disabled_account(site: Loaded, name: str) -> None:
    found = explain(site, name)
    assert found.verdict == "refused"
    assert found.result == f"disabled in {site.path.parent}/users"
    assert found.steps[-1].stage == "account"
    assert lines(site, found, "account") == [15]


# Passwords


def test_a_user_whom_the_users_file_knows(site: Loaded) -> None:
    found = explain(site, "KNOWN")
    assert (found.kind, found.listener, found.verdict) == ("user", "pop3", "let in")
    assert steps(found, "identity") == [("done", "the user known@a.test, if the password is right")]
    assert steps(found, "password") == [("done", "users: the hash in the users file decides")]
    assert lines(site, found, "password") == [2]
    assert steps(found, "login")[0] == ("done", "forward: USER known@a.test and PASS")


def test_a_user_about_whom_the_kdc_decides(site: Loaded) -> None:
    found = explain(site, "uanna")
    assert [text for _, text in steps(found, "password")] == [
        "users: not in the users file",
        "kerberos: the KDC decides about uanna@A.TEST",
        "realm A.TEST is listed",
        f"table {site.path.parent}/principals.map: no entry",
        r"regex u(.*)@A\.TEST: anna@a.test",
    ]
    assert found.mailbox == "anna@a.test"
    assert explain(site, "uclosed").result == f"disabled in {site.path.parent}/users"


def test_a_user_who_is_disabled_or_unknown(site: Loaded) -> None:
    assert explain(site, "closed").result == "disabled in the users file"
    found = explain(site, "alice@nowhere.test")
    assert ("passed", "kerberos: its domain is that of no realm") in steps(found, "password")
    assert found.result == "nobody is left to decide about the password"


def plain(directory: Path, more: str = "", authenticate: str = "passthrough", login: str = "forward") -> Loaded:
    text = f"""
        listeners:
          - {{name: pop3, listen: [":110"], tls: none, cleartext_networks: [127.0.0.1], authenticate: [{authenticate}]}}
        vault: {{file: vault, key: &m {{env: M}}}}
        pools:
          main: {{servers: [a], tls: none, allow_cleartext: true, login: [{login}], master: {{user: m, password: *m}}}}
    """
    return load_bytes((dedent(text) + more).encode(), directory / "popproxy.yaml")


def test_a_password_that_the_server_judges(tmp_path: Path) -> None:
    loaded = plain(tmp_path, login="forward, master")
    found = explain(loaded, "alice@EXAMPLE.COM")
    assert found.steps[0].step.text == "alice@EXAMPLE.COM is taken for a user: there is no section kerberos"
    assert steps(found, "password") == [("done", "passthrough: the server decides")]
    assert steps(found, "account") == [("passed", "there is no users file that could disable it")]
    assert steps(found, "link") == [("done", "in clear")]
    assert steps(found, "login") == [
        ("done", "forward: USER alice@example.com and the client's password, about which the server decides"),
        ("passed", "master: only the server can tell who it is, and this would let anybody in"),
    ]
    assert found.result.endswith("by forward, if the password is accepted by the server")


def test_a_directory_is_named_but_not_asked_and_a_domain_has_judges_of_its_own(tmp_path: Path) -> None:
    more = (
        "directories:\n  corp: {ldap: {servers: [nowhere.invalid], user_dn: 'uid={user}'}}\n"
        "authentication: {domains: {Corp.test: [corp]}}\n"
    )
    loaded = plain(tmp_path, more)
    found = explain(loaded, "alice@corp.test")
    [(outcome, text)] = steps(found, "password")
    assert text.startswith("corp: the directory decides about alice@corp.test")
    assert (outcome, found.verdict) == ("done", "let in")
    assert steps(explain(loaded, "alice@other.test"), "password")[0][1].startswith("passthrough")


def test_a_user_without_a_route(tmp_path: Path) -> None:
    found = explain(plain(tmp_path, "routing: {rules: [{user: bob, pool: main}]}\n"), "alice")
    assert (found.verdict, found.result) == ("refused", "no rule matches, and there is no default")
    assert found.steps[-1].step.key == ("routing",)


@pytest.mark.parametrize("name", ["", "al\tice", "x" * 300])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    found = explain(plain(tmp_path), name)
    assert found.verdict == "refused"
    assert "cannot be a name" in found.result
    assert all(one.step.text.isprintable() for one in found.steps)


def test_listeners(site: Loaded, tmp_path: Path) -> None:
    with pytest.raises(NoSuchListener, match="there is no listener nix; there are pop3, gss, kpop"):
        explain(site, "alice", "nix")
    found = explain(site, "alice@A.TEST", "pop3")
    assert (found.verdict, found.result) == ("not set up", "pop3 takes no tickets")
    found = explain(site, "alice", "kpop")
    assert (found.verdict, found.result) == ("not set up", "kpop takes no passwords")


def test_files_that_cannot_be_used(site: Loaded) -> None:
    (site.path.parent / "principals.map").unlink()
    with pytest.raises(ConfigError, match=r"principals\.map"):
        explain(site, "alice@A.TEST")


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("alice", "user", "(a principal would be alice@A.TEST)"),
        ("alice@a.test", "user", "(the principal is alice@A.TEST)"),
        ("alice@other.test", "user", ""),
        ("alice@OTHER.TEST", "principal", "is written like a realm"),
        ("alice/admin", "principal", "two parts"),
    ],
)
def test_what_a_name_is_taken_for(site: Loaded, name: str, kind: str, hint: str) -> None:
    found = explain(site, name)
    assert found.kind == kind
    assert found.steps[0].step.text.endswith(hint) if not hint else hint in found.steps[0].step.text


# Tickets for the server


def with_tickets(directory: Path, login: str, listener: str = "gssapi: true") -> Loaded:
    text = f"""
        listeners:
          - {{name: pop3, listen: [":110"], tls: none, {listener}, cleartext_networks: [127.0.0.1], authenticate: [kerberos]}}
        kerberos: {{keytab: k, principals: [pop/front.a.test], replay_cache: r, realms: [{{realm: A.TEST}}]}}
        pools:
          main: {{servers: [back.a.test], tls: none, allow_cleartext: true, login: [{login}]}}
    """  # noqa: E501
    return load_bytes(dedent(text).encode(), directory / "popproxy.yaml")


def test_tickets_for_the_server_after_a_ticket(tmp_path: Path) -> None:
    loaded = with_tickets(tmp_path, "kerberos-forwarded, kerberos-delegated, kerberos-service")
    found = explain(loaded, "alice@A.TEST")
    assert steps(found, "login") == [
        (
            "open",
            "kerberos-forwarded: AUTH GSSAPI for alice, with a ticket got by the one that the client forwards, if it "
            "forwards one (pop/{host}), everything behind it confidential or signed",
        ),
        (
            "done",
            "kerberos-delegated: AUTH GSSAPI for alice, if the KDC gives us a ticket in exchange for the client's "
            "(pop/{host}), everything behind it confidential or signed",
        ),
        (
            "done",
            "kerberos-service: AUTH GSSAPI for alice, with our own ticket (pop/{host}), everything behind it "
            "confidential or signed, if what is above cannot be used there",
        ),
    ]
    assert found.strategy == "kerberos-delegated"


def test_no_kpop_client_forwards_a_ticket(tmp_path: Path) -> None:
    loaded = with_tickets(tmp_path, "kerberos-forwarded, kerberos-delegated", "protocol: kpop")
    found = explain(loaded, "alice@A.TEST")
    assert steps(found, "login")[0] == ("passed", "kerberos-forwarded: the client has forwarded no ticket")
    assert found.strategy == "kerberos-delegated"


def test_tickets_for_the_server_after_a_password(tmp_path: Path) -> None:
    loaded = with_tickets(tmp_path, "kerberos-delegated, kerberos-transition")
    found = explain(loaded, "alice")
    assert [outcome for outcome, _ in steps(found, "login")] == ["passed", "done"]
    assert found.strategy == "kerberos-transition"
    found = explain(with_tickets(tmp_path, "kerberos-delegated"), "alice")
    assert found.verdict == "not set up"


@pytest.mark.parametrize(
    ("rule", "name", "told"),
    [
        ("{mechanisms: [USER], domains: [a.test]}", "known", ("refused", "refused: USER cannot be used any more")),
        (
            "{mechanisms: [GSSAPI], until: 2001-01-01}",
            "al@A.TEST",
            ("refused", "refused: GSSAPI cannot be used any more"),
        ),
        ("{mechanisms: [USER], until: 2999-12-31}", "known", ("done", "USER can be used until 2999-12-31")),
        (
            "{mechanisms: [USER], except_networks: [10.0.0.0/8]}",
            "known",
            ("open", "USER can be used from the networks that it names"),
        ),
        ("{mechanisms: [USER], users: [boss]}", "known", None),
    ],
)
def test_a_mechanism_that_is_given_up(site: Loaded, rule: str, name: str, told: tuple[str, str] | None) -> None:
    loaded = load_bytes(f"{FILE}policy:\n  - {rule}\n".encode(), site.path)
    found = explain(loaded, name)
    assert steps(found, "policy") == ([] if told is None else [told])
    assert (found.verdict == "refused") is (told is not None and told[0] == "refused")
    assert lines(loaded, found, "policy") == ([] if told is None else [FILE.count("\n") + 2])


@pytest.mark.parametrize(
    ("shared", "balance", "words"),
    [
        (
            "true",
            "{choose: weights, weights: {one.a.test:1110: 3}}",
            ["by chance: 3 of 4 logins", "by chance: 1 of 4 logins"],
        ),
        ("true", "{choose: weights, weights: {two.a.test: 0}}", ["by chance: 1 of 1 logins", "if no other works"]),
        ("true", "{choose: hash}", ["tried first for boss@a.test, by the hash of the name", "then"]),
        ("false", "{choose: hash}", ["the only one for boss@a.test, by the hash of the name"]),
    ],
)
def test_which_server_and_why(site: Loaded, shared: str, balance: str, words: list[str]) -> None:
    raw = FILE.replace("shared: true,", f"shared: {shared}, balance: {balance},")
    found = explain(load_bytes(raw.encode(), site.path), "boss@a.test")
    servers = [one.step for one in found.steps if one.stage == "server"]
    assert sorted(step.text.partition(", ")[2] for step in servers) == sorted(words)
    assert [step.key[-1] for step in servers if step.text.startswith("one")] in ([0], [])


def test_what_operators_have_ordered(tmp_path: Path) -> None:
    servers = "servers: [one.a.test, two.a.test, three.a.test], shared: true"
    text = f"""\
listeners: [{{name: pop3, listen: [":110"], tls: none, cleartext_networks: [127.0.0.1]}}]
routing: {{rules: [{{domain: a.test, pool: old, backend_user: "{{local}}"}}]}}
pools:
  old: {{servers: [old.a.test]}}
  new: {{{servers}}}
process: {{state_directory: state}}
"""
    (tmp_path / "state").mkdir()
    site = load_bytes(text.encode(), tmp_path / "popproxy.yaml")
    orders = Orders(
        {"held@a.test": Hold(1.0), "over@a.test": Hold(1.0, 2.0)},
        {"moved@a.test": Move(1.0, "new", "two.a.test:110"), "lost@a.test": Move(1.0, "gone")},
        {("new", "one.a.test:110"): Closed(1.0, "drain")},
    )
    (tmp_path / "state" / ORDERS_FILE).write_bytes(encode(orders))

    def said(user: str, stage: str) -> list[str]:
        return [one.step.text for one in explain(site, user).steps if one.stage == stage]

    moved = explain(site, "moved@a.test")
    assert (moved.verdict, moved.pool, moved.backend_user) == ("let in", "new", "moved")
    assert said("moved@a.test", "server") == [
        "two.a.test:110, where an operator has put the user", "three.a.test:110, then",
        "one.a.test:110, drain: ordered by an operator",
    ]  # fmt: skip
    held = explain(site, "held@a.test")
    assert (held.verdict, held.pool) == ("refused", "old")
    assert "held by an operator since 1970-01-0" in held.result
    assert explain(site, "over@a.test").verdict == "let in"
    assert "a place that no pool has: pool gone" in explain(site, "lost@a.test").result
    (tmp_path / "state" / ORDERS_FILE).write_bytes(b"{")
    assert explain(site, "moved@a.test").pool == "old"
    assert "are not known" in said("moved@a.test", "orders")[0]


def test_servers_that_srv_records_name(tmp_path: Path) -> None:
    text = """\
listeners: [{name: pop3, listen: [":110"], tls: none, cleartext_networks: [127.0.0.1]}]
pools: {main: {srv: a.test, shared: true, tls: implicit}}
"""
    found = explain(load_bytes(text.encode(), tmp_path / "popproxy.yaml"), "alice")
    assert found.verdict == "let in"
    step = next(one.step for one in found.steps if one.stage == "server")
    assert (step.text, step.outcome) == ("those that the SRV records of _pop3s._tcp.a.test name", "open")


def test_the_way_to_the_servers_and_what_they_are_told(tmp_path: Path) -> None:
    text = """\
        listeners: [{name: pop3, listen: [":110"], tls: none, cleartext_networks: [127.0.0.1]}]
        pools:
          main:
            servers: [one.test, two.test]
            shared: true
            socks: {server: gate.test}
            server_tunnels: {two.test: far}
            proxy_header: v2
            xclient: true
        tunnels:
          far: {host: far.test, user: us, known_hosts: k, key: {env: K}, via: near}
          near: {host: near.test, port: 2222, user: us, known_hosts: k, key: {env: K}}
        """
    loaded = load_bytes(dedent(text).encode(), tmp_path / "popproxy.yaml")
    found = explain(loaded, "alice")
    told = [text for _, text in steps(found, "link")]
    assert told[:4] == [
        "the server is told the client's address (PROXY v2)",
        "the server is told the client's address (XCLIENT)",
        "through the SOCKS proxy gate.test:1080",
        "to two.test through the SSH tunnel far (us at far.test:22) via near (us at near.test:2222)",
    ]
    assert lines(loaded, found, "link")[:4] == [8, 9, 6, 7]
