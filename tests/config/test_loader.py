"""Loading: everything wrong at once and in order, nothing but ConfigError, names and types as they were meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from popproxy.config.loader import load, load_bytes, load_file
from popproxy.errors import ConfigError, Problem
from popproxy.types import Address

GOOD = b"""\
listeners: [{name: pop3, listen: [":110"]}]
pools: {main: {servers: [old.example.com]}}
tls: {certificates: [{cert: mail.pem}]}
"""

MANY = b"""\
listners: []
listeners:
  - name: POP3
    listen: [110, ":995"]
    tls: starttls
    banenr: Hello
  - listen: [":995"]
    apop: perhaps
  - name: third
    listen: [":2110"]
    tls: implicit
    authenticate: [users]
pools:
  main:
    servers: [a, b]
    tls: none
    pipelining: sometimes
  broken:
    tls: stls
routing:
  rules:
    - {user: alice, domain: example.com, pool: main}
    - {regex: "(", pool: main}
    - {domain: example.net, pool: mian}
  default: nowhere
timeouts:
  idle: 600
  login: 30s
  login: 40s
limits:
  connections: -5
"""


def told(raw: bytes) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_bytes(raw, Path("popproxy.yaml"))
    return caught.value.problems


def test_all_that_is_wrong_is_told_at_once_and_in_the_order_of_the_file() -> None:
    assert [(problem.where, problem.key) for problem in told(MANY)] == [
        ("popproxy.yaml:1", "listners"),
        ("popproxy.yaml:3", "listeners[0].name"),
        ("popproxy.yaml:4", "listeners[0].listen[0]"),
        ("popproxy.yaml:5", "listeners[0].tls"),
        ("popproxy.yaml:6", "listeners[0].banenr"),
        ("popproxy.yaml:7", "listeners[1].name"),
        ("popproxy.yaml:8", "listeners[1].apop"),
        ("popproxy.yaml:11", "listeners[2].tls"),
        ("popproxy.yaml:12", "listeners[2].authenticate[0]"),
        ("popproxy.yaml:15", "pools.main.servers"),
        ("popproxy.yaml:16", "pools.main.tls"),
        ("popproxy.yaml:17", "pools.main.pipelining"),
        ("popproxy.yaml:18", "pools.broken.servers"),
        ("popproxy.yaml:22", "routing.rules[0]"),
        ("popproxy.yaml:23", "routing.rules[1].regex"),
        ("popproxy.yaml:24", "routing.rules[2].pool"),
        ("popproxy.yaml:25", "routing.default"),
        ("popproxy.yaml:27", "timeouts.idle"),
        ("popproxy.yaml:29", "timeouts.login"),
        ("popproxy.yaml:31", "limits.connections"),
    ]


def test_the_text_of_the_exception_is_one_line_a_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        load_bytes(MANY, Path("popproxy.yaml"))
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]


def test_a_mistake_is_not_told_again_by_its_consequences() -> None:
    raw = GOOD.replace(b"{cert: mail.pem}", b"{crt: mail.pem}")
    assert [problem.key for problem in told(raw)] == ["tls.certificates[0].cert", "tls.certificates[0].crt"]


def test_a_rule_that_names_a_pool_with_a_mistake_in_it_is_not_blamed() -> None:
    raw = GOOD.replace(b"servers:", b"severs:") + b"routing: {default: main}\n"
    assert {problem.key for problem in told(raw)} == {"pools.main.servers", "pools.main.severs"}


def test_the_file_is_named_as_the_administrator_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir()
    Path("conf/p.yaml").write_bytes(GOOD + b"audti: {}\n")
    with pytest.raises(ConfigError) as caught:
        load(Path("conf/../conf/p.yaml"))
    assert caught.value.problems[0].where == "conf/../conf/p.yaml:4"


def test_relative_file_names_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir()
    Path("conf/p.yaml").write_bytes(GOOD + b"users: {file: /etc/users}\naudit: {file: ../audit.jsonl}\n")
    config = load(Path("conf/p.yaml"))
    assert config.tls.certificates[0].cert == tmp_path / "conf/mail.pem"
    assert config.users is not None
    assert config.users.file == Path("/etc/users")
    assert config.audit.file == tmp_path / "conf/../audit.jsonl"


@pytest.mark.parametrize(
    ("written", "meant"), [("no", "no"), ("yes", "yes"), ("'no'", "no"), ("auto", "auto")]
)  # YAML 1.1 would read booleans
def test_words_stay_words(written: str, meant: str) -> None:
    raw = GOOD.replace(b"servers:", f"pipelining: {written}, servers:".encode())
    assert load_bytes(raw, Path("p")).config.pools["main"].pipelining == meant


def test_numbers_that_are_names_stay_as_written() -> None:
    raw = GOOD + b"routing: {rules: [{user: 0123, pool: main, backend_user: 1_0}]}\nprocess: {user: 1e3}\n"
    config = load_bytes(raw, Path("p")).config
    assert (config.routing.rules[0].user, config.routing.rules[0].backend_user) == ("0123", "1_0")
    assert config.process.user == "1e3"


def test_a_version_of_tls_needs_no_quotes() -> None:
    raw = GOOD.replace(b"tls: {", b"tls: {minimum: 1.3, ")
    assert load_bytes(raw, Path("p")).config.tls.minimum == "1.3"


@pytest.mark.parametrize("written", ["22:22", "'22:22'"])
def test_a_host_that_is_a_number_is_not_sexagesimal(written: str) -> None:
    raw = GOOD.replace(b"[old.example.com]", f"[mail:{written[-3:-1]}]".encode() if "'" in written else b"[mail:22]")
    assert load_bytes(raw, Path("p")).config.pools["main"].servers == [Address("mail", 22)]


@pytest.mark.parametrize("word", ["true", "True", "yes", "on"])
def test_booleans_may_be_written_as_people_do(word: str) -> None:
    raw = GOOD.replace(b"servers:", f"shared: {word}, servers:".encode())
    assert load_bytes(raw, Path("p")).config.pools["main"].shared is True


def test_a_section_whose_keys_are_commented_out_has_its_defaults() -> None:
    assert load_bytes(GOOD + b"audit:\n  #file: a\nvault:\n", Path("p")).config == load_bytes(GOOD, Path("p")).config


def test_anchors_and_merge_keys_work_with_the_nearer_value_winning() -> None:
    raw = b"""
pools:
  one: &common {servers: [a], tls: implicit, capabilities: [UIDL]}
  two: {<<: *common, servers: [b]}
routing: {default: one}
""" + GOOD.replace(b"pools: {main: {servers: [old.example.com]}}\n", b"")
    two = load_bytes(raw, Path("p")).config.pools["two"]
    assert (two.servers, two.tls, two.capabilities) == ([Address("b", 0)], "implicit", ["UIDL"])


def test_an_alias_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    problem = told("\n".join(lines).encode())[0]
    assert "more than 20000 values" in problem.what
    assert "fewer aliases" in problem.cure


@pytest.mark.parametrize("text", ["timeouts: {idle: %ss}", "limits: {connections: %s}", "users: {file: /%s}", "%s: 1"])
def test_an_endless_value_is_refused_on_one_short_line(text: str) -> None:
    for character in "9a:@.":
        raw = GOOD + (text % (character * 100_000)).encode() + b"\n"
        assert all(len(problem.what) < 200 for problem in told(raw + b"audit: 1\n"))


def test_missing_sections_are_told_as_they_would_be_written() -> None:
    assert [problem.cure for problem in told(b"audit: {}\n")] == [
        'add it, for example listeners: [{name: pop3, listen: [":110"]}]',
        "add it, for example pools: {main: {servers: [mail.example.com]}}",
    ]


def test_an_alias_inside_itself_is_refused() -> None:
    problem = told(b"a: &a [*a]\n")[0]
    assert (problem.where, problem.cure) == ("popproxy.yaml:1", "write the value itself")


@pytest.mark.parametrize(
    ("raw", "line", "what", "cure"),
    [
        (b"", 1, "empty", "listeners and pools"),
        (b"# nothing yet\n", 1, "empty", "listeners and pools"),
        (b"---\n...\n", 1, "", "listeners and pools"),
        (b"hello\n", 1, "not made of sections", "listeners:"),
        (b"- a\n- b\n", 1, "not made of sections", "listeners:"),
        (b"a: b\nc: \xff\n", 2, "octet 0xff is not UTF-8", "UTF-8"),
        (b"a: b\nc: \0\n", 2, "control character (U+0000)", "plain text"),
        ("a: b\n".encode("utf-16"), 1, "UTF-16", "UTF-8"),
        (b"\x7fELF\x02\x01\x01\0", 1, "control character", "plain text"),
    ],
)
def test_what_is_no_configuration_at_all_is_told_plainly(raw: bytes, line: int, what: str, cure: str) -> None:
    problem = told(raw)[0]
    assert problem.where == f"popproxy.yaml:{line}"
    assert what in problem.what
    assert cure in problem.cure


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    raw = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n")
    assert load_bytes(raw, Path("p")).config == load_bytes(GOOD, Path("p")).config


def test_a_file_that_is_not_there_is_told_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; name the file with -c"):
        load(tmp_path / "nothing.yaml")


def test_a_directory_is_told_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a directory; name a file"):
        load(tmp_path)


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"larger than 256 KiB"):
        load(Path("/dev/zero"))


def test_a_file_name_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load(tmp_path / ("x" * 300))
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load(Path("a\0b"))


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(GOOD)
    path.chmod(0)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:  # root may read everything, so become nobody first
        code = 1
        try:
            if os.geteuid() == 0:
                os.chdir(tmp_path)
                os.setuid(65534)
            load(Path("p.yaml") if os.geteuid() == 65534 else path)
        except ConfigError as error:
            code = 0 if "may not be read; let the user" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_value_of_a_secret_is_in_a_message() -> None:
    for raw in (
        b"vault: {file: v, key: CANARY}\n",
        b"vault: {file: v, key: {value: CANARY}}\n",
        b"vault: {password: CANARY}\n",
    ):
        assert "CANARY" not in "\n".join(map(str, told(GOOD + raw)))
    assert "CANARY" not in str(told(GOOD.replace(b"old.example.com", b"'pop3://joe:CANARY@old.example.com'"))[0])


WARNED = [
    (b"timeouts: {idle: 30s}\n", "timeouts.idle", "RFC 1939 section 3"),
    (b"vault: {file: v, key: {env: KEY}}\n", "vault", "nothing uses the vault"),
    (b"users: {file: u}\n", "users", "no listener asks"),
    (b"limits: {connections: 5}\n", "limits.connections_per_address", "more than all connections"),
    (b"limits: {sessions_per_user: 5}\n", "limits.sessions_per_user_and_address", "more than all sessions of the user"),
    (b"penalties: {allow: ['::/0']}\n", "penalties.allow[0]", "nobody would be slowed down"),
    (b"http: {listen: null, token: {env: T}}\n", "http.token", "no effect without listen"),
    (b"penalties: {tarpit: 5s}\n", "penalties.tarpit", "no effect with answer: refuse"),
    (b"control: {socket: null, group: a}\n", "control.group", "no effect without a socket"),
    (b"authentication: {default_domain: a.example}\nrouting: {default: main, rules: [{user: joe, pool: main}]}\n",
     "routing.rules[0].user", "never matches"),
]  # fmt: skip


def test_fronts_anywhere_are_warned_about() -> None:
    raw = GOOD.replace(b"listen:", b"xclient: ['0.0.0.0/0'], listen:", 1)
    assert raw != GOOD
    [warning] = load_bytes(raw, Path("p.yaml")).warnings
    assert (warning.key, warning.what) == ("listeners[0].xclient[0]", "everybody may forge the address of a client")


@pytest.mark.parametrize(("raw", "key", "what"), WARNED, ids=[key for _, key, _ in WARNED])
def test_what_is_allowed_but_looks_wrong_is_a_warning(raw: bytes, key: str, what: str) -> None:
    warnings = load_bytes(GOOD + raw, Path("p.yaml")).warnings
    assert [warning.key for warning in warnings] == [key]
    assert what in warnings[0].what
    assert warnings[0].where.startswith("p.yaml:")


@pytest.mark.parametrize(
    ("pool", "key"),
    [
        (b"verify: false", "pools.main.verify"),
        (b"allow_cleartext: true", "pools.main.allow_cleartext"),
        (b"tls: none, allow_cleartext: true, ca: a.pem", "pools.main.ca"),
        (b"balance: {choose: hash}", "pools.main.balance.choose"),
        (b"balance: {queue: 10}", "pools.main.balance.queue"),
        (b"shared: true, balance: {weights: {old.example.com: 2}}", "pools.main.balance.weights"),
    ],
)
def test_a_pool_is_warned_about(pool: bytes, key: str) -> None:
    warnings = load_bytes(GOOD.replace(b"servers:", pool + b", servers:"), Path("p")).warnings
    assert [warning.key for warning in warnings] == [key]


TICKETS = b"""\
listeners: [{name: pop3, listen: [":110"], gssapi: true, authenticate: [kerberos]}]
kerberos: {keytab: k, principals: [pop/a@A], replay_cache: r, realms: [{realm: A}]}
pools: {main: {servers: [old.example.com], login: [forward, kerberos-delegated]}}
tls: {certificates: [{cert: mail.pem}]}
"""


@pytest.mark.parametrize(
    ("before", "after", "key", "what"),
    [
        (b"gssapi: true", b"gssapi: false", "pools.main.login[1]", "no listener takes tickets"),
        (b"old.example.com", b"192.0.2.1", "pools.main.servers[0]", "hardly knows a pop/192.0.2.1"),
        (b"realms: [{realm: A}]", b"realms: [{realm: A}], layers: [none, integrity]", "kerberos.layers", "in clear"),
        (b"kerberos-delegated]", b"kerberos-delegated], kerberos: {layers: [none]}",
         "pools.main.kerberos.layers", "tls: stls"),
        (b"[forward, kerberos-delegated]", b"[kerberos-service], tls: none, kerberos: {layers: [none]}",
         "pools.main.kerberos.layers", "in clear"),
        (b"kerberos-delegated]", b"master], master: {user: a, password: {env: A}}, kerberos: {channel_binding: false}",
         "pools.main.kerberos", "names no kerberos-... strategy"),
        (b"kerberos-delegated]", b"master], master: {user: a, password: {env: A}, mechanism: plain, separator: '%'}",
         "pools.main.master.separator", "no effect with mechanism: plain"),
    ],
)  # fmt: skip
def test_what_looks_wrong_with_tickets_is_a_warning(before: bytes, after: bytes, key: str, what: str) -> None:
    assert load_bytes(TICKETS, Path("p")).warnings == []
    warnings = load_bytes(TICKETS.replace(before, after), Path("p")).warnings
    assert [warning.key for warning in warnings] == [key], list(map(str, warnings))
    assert what in warnings[0].what


def test_a_link_without_tls_needs_no_leave_for_tickets() -> None:
    """No secret goes over it in clear, and what protects the session is said by the layers."""
    raw = TICKETS.replace(b"[forward, kerberos-delegated]", b"[kerberos-delegated, kerberos-service], tls: none")
    assert load_bytes(raw, Path("p")).warnings == []
    both = raw.replace(b"kerberos-service", b"forward")
    assert [problem.key for problem in told(both)] == ["pools.main.tls"]


def test_a_pool_that_needs_tickets_is_use_enough_for_the_section() -> None:
    raw = TICKETS.replace(b"gssapi: true, authenticate: [kerberos]", b"authenticate: [users]")
    raw = raw.replace(b"-delegated", b"-transition")
    assert load_bytes(raw + b"users: {file: u}\n", Path("p")).warnings == []


def test_who_is_behind_passthrough_is_asked_about_no_password() -> None:
    raw = GOOD + b"users: {file: u}\nauthentication: {domains: {a.example: [passthrough, users]}}\n"
    (warning,) = load_bytes(raw, Path("p")).warnings
    assert warning.key == "authentication.domains.a.example[0]"
    assert warning.cure == "write it last: [users, passthrough]"
    assert load_bytes(raw.replace(b"[passthrough, users]", b"[users, passthrough]"), Path("p")).warnings == []


def test_a_pool_that_nobody_is_sent_to_is_warned_about() -> None:
    raw = GOOD.replace(b"main: {", b"spare: {servers: [b]}, main: {") + b"routing: {default: main}\n"
    assert [warning.key for warning in load_bytes(raw, Path("p")).warnings] == ["pools.spare"]


def test_the_only_pool_serves_everybody_unless_there_are_rules() -> None:
    rules = b"routing: {rules: [{user: a, pool: main}]}\n"
    assert load_bytes(GOOD, Path("p")).config.effective_default_pool == "main"
    assert load_bytes(GOOD + rules, Path("p")).config.effective_default_pool is None
    assert load_bytes(GOOD + b"routing: {default: main}\n", Path("p")).config.effective_default_pool == "main"


def test_load_file_gives_the_path_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(GOOD)
    loaded = load_file(tmp_path / "p.yaml")
    assert (loaded.path, loaded.warnings) == (tmp_path / "p.yaml", [])


KEYS = st.sampled_from(
    ["listeners", "pools", "routing", "rules", "tls", "servers", "listen", "name", "vault", "key", "file"]
) | st.sampled_from(["timeouts", "idle", "regex", "backend_user", "certificates", "login", "user", "pool", "default"])
WORDS = st.one_of(
    KEYS,
    st.text(max_size=12),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.sampled_from(["(", "{user", "\\1", ":110"]),
)
TREES = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)


def never_anything_but_config_error(raw: bytes) -> None:
    try:
        load_bytes(raw, Path("p.yaml"))
    except ConfigError as error:
        found = error.problems
    else:
        return
    assert found
    for problem in found:
        assert "\n" not in str(problem)
        assert problem.where.startswith("p.yaml:")
        assert problem.cure


@settings(max_examples=150)
@given(st.binary(max_size=300))
@example(b"[" * 5000)
@example(b"{" * 5000)
@example(b"? " * 3000)
@example(b"- " * 3000)
@example(b"a: &a\n  <<: *a\n")
def test_no_octets_raise_anything_but_config_error(raw: bytes) -> None:
    never_anything_but_config_error(raw)


@settings(max_examples=150)
@given(st.text(alphabet="abl:-[]{}&*!|>'\"%@`#,? \n\t~<1.0", max_size=120))
def test_no_yaml_punctuation_raises_anything_but_config_error(text: str) -> None:
    never_anything_but_config_error(text.encode())


@settings(max_examples=150)
@given(TREES)
def test_no_tree_of_values_raises_anything_but_config_error(tree: object) -> None:
    never_anything_but_config_error(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@settings(max_examples=120)
@given(st.data())
def test_no_damaged_configuration_raises_anything_but_config_error(data: st.DataObject) -> None:
    lines = MANY.decode().splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = data.draw(
            st.sampled_from(["", "  " + lines[number], lines[number][2:], lines[number] + " x", "- a"])
        )
    never_anything_but_config_error("\n".join(lines).encode())
