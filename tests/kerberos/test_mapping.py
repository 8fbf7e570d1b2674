"""Principals and the mailboxes they get, or the reason why they get none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import ConfigError
from popproxy.kerberos.mapping import (
    Mapped,
    MapRefusal,
    NotMapped,
    PrincipalMap,
    RealmRule,
    Rule,
    TableRule,
    parse_table,
    regex_rule,
)
from popproxy.types import Step

TABLE = parse_table(b"# who\nroot/mail@EXAMPLE.ORG postmaster@example.org\nBob@EXAMPLE.ORG Robert\n", "table")

RULES = PrincipalMap(
    [
        RealmRule("EXAMPLE.ORG", "example.org", frozenset({"mail"}), key=("realms", 0)),
        RealmRule("PLAIN.ORG"),
        RealmRule("STRICT.ORG", by_name=False),
    ],
    [
        regex_rule(r"u(\d+)@EXAMPLE\.ORG", r"user\1@example.org", ("rules", 0)),
        TableRule("table", lambda: TABLE, ("rules", 1)),
        regex_rule(r"(?P<who>s-\w+)@STRICT\.ORG", r"\g<who>", ("rules", 2)),
    ],
)


@pytest.mark.parametrize(
    ("principal", "mailbox"),
    [
        ("alice@EXAMPLE.ORG", "alice@example.org"),
        ("Alice@EXAMPLE.ORG", "alice@example.org"),
        ("alice@PLAIN.ORG", "alice"),
        ("alice/mail@EXAMPLE.ORG", "alice@example.org"),
        ("u17@EXAMPLE.ORG", "user17@example.org"),
        ("u17/mail@EXAMPLE.ORG", "user17@example.org"),
        ("root/mail@EXAMPLE.ORG", "postmaster@example.org"),
        ("Bob@EXAMPLE.ORG", "robert"),
        ("BOB@EXAMPLE.ORG", "robert"),  # one and the same to Active Directory, and its ticket says what was asked for
        ("ROOT/Mail@EXAMPLE.ORG", "postmaster@example.org"),
        ("U17@EXAMPLE.ORG", "user17@example.org"),
        ("s-anna@STRICT.ORG", "s-anna"),
        ("j\u00f6rg@PLAIN.ORG", "j\u00f6rg"),
        ("jo\u0308rg@PLAIN.ORG", "j\u00f6rg"),
        ("a.b-c_d+e$@PLAIN.ORG", "a.b-c_d+e$"),
    ],
)
def test_mapped(principal: str, mailbox: str) -> None:
    result = RULES.map(principal)
    assert isinstance(result, Mapped), result
    assert result.mailbox == mailbox
    assert result.steps[-1].outcome == "done"


@pytest.mark.parametrize(
    ("principal", "reason"),
    [
        ("alice@EVIL.ORG", MapRefusal.REALM),
        ("alice@example.org", MapRefusal.REALM),
        ("alice@EXAMPLE.ORG.EVIL.ORG", MapRefusal.REALM),
        ("alice@EXAMPLE.ORG@EVIL.ORG", MapRefusal.MALFORMED),
        ("alice\\@EXAMPLE.ORG@EVIL.ORG", MapRefusal.MALFORMED),
        ("alice\\@EVIL.ORG@EXAMPLE.ORG", MapRefusal.MALFORMED),
        ("alice/admin@EXAMPLE.ORG", MapRefusal.INSTANCE),
        ("u17/admin@EXAMPLE.ORG", MapRefusal.INSTANCE),
        ("alice/mail@PLAIN.ORG", MapRefusal.INSTANCE),
        ("alice/Mail@EXAMPLE.ORG", MapRefusal.INSTANCE),
        ("WELLKNOWN/ANONYMOUS@EXAMPLE.ORG", MapRefusal.INSTANCE),
        ("WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", MapRefusal.REALM),
        ("alice\\/mail@EXAMPLE.ORG", MapRefusal.MALFORMED),
        ("alice/mail/mail@EXAMPLE.ORG", MapRefusal.MALFORMED),
        ("alice@STRICT.ORG", MapRefusal.NO_RULE),
        ("xs-anna@STRICT.ORG", MapRefusal.NO_RULE),
        ("s-anna@STRICT.ORG\n", MapRefusal.MALFORMED),
        ("alice", MapRefusal.MALFORMED),
        ("", MapRefusal.MALFORMED),
        ("@EXAMPLE.ORG", MapRefusal.MALFORMED),
        ("alice@", MapRefusal.MALFORMED),
        ("/mail@EXAMPLE.ORG", MapRefusal.MALFORMED),
        ("alice/@EXAMPLE.ORG", MapRefusal.MALFORMED),
        ("alice\\", MapRefusal.MALFORMED),
        ("al\\nice@PLAIN.ORG", MapRefusal.MALFORMED),
        ("al\\0ice@PLAIN.ORG", MapRefusal.MALFORMED),
        ("al\r\nice@PLAIN.ORG", MapRefusal.MALFORMED),
        ("al ice@PLAIN.ORG", MapRefusal.MALFORMED),
        ("al\u200bice@PLAIN.ORG", MapRefusal.MALFORMED),
        ("al\\\\ice@PLAIN.ORG", MapRefusal.MALFORMED),
        ("al\udce9ice@PLAIN.ORG", MapRefusal.MALFORMED),
    ],
)
def test_not_mapped(principal: str, reason: MapRefusal) -> None:
    result = RULES.map(principal)
    assert isinstance(result, NotMapped), result
    assert result.reason is reason
    assert result.steps[-1].text.startswith("refused: ")
    assert [step.outcome for step in result.steps].count("refused") == 1
    for step in result.steps:
        assert step.text.isprintable()


def test_steps_tell_the_whole_way() -> None:
    assert RULES.map("alice/mail@EXAMPLE.ORG").steps == (
        Step("realm EXAMPLE.ORG is listed", ("realms", 0)),
        Step("table table: no entry", ("rules", 1), "passed"),
        Step("instance /mail is allowed and stands for alice", ("realms", 0, "instances")),
        Step(r"regex u(\d+)@EXAMPLE\.ORG: no match", ("rules", 0), "passed"),
        Step(r"regex (?P<who>s-\w+)@STRICT\.ORG: no match", ("rules", 2), "passed"),
        Step("by name: alice@example.org", ("realms", 0, "domain")),
    )
    assert RULES.map("u17@EXAMPLE.ORG").steps[-1] == Step(
        r"regex u(\d+)@EXAMPLE\.ORG: user17@example.org", ("rules", 0)
    )
    assert RULES.map("root/mail@EXAMPLE.ORG").steps[-1].key == ("rules", 1)


def test_case_can_be_kept() -> None:
    keep = PrincipalMap([RealmRule("EXAMPLE.ORG", "Example.org")], case="keep")
    assert keep.map("Alice@EXAMPLE.ORG") == Mapped("Alice@Example.org", keep.map("Alice@EXAMPLE.ORG").steps)


def test_capitals_are_a_line_of_their_own_if_there_is_one() -> None:
    book = {"Bob@R": "first", "bob@R": "second"}
    rules: list[Rule] = [TableRule("t", lambda: book), regex_rule(r"(u\d)@R", r"regex-\1")]
    for case, principal, mailbox in (
        ("fold", "Bob@R", "first"), ("fold", "bob@R", "second"), ("fold", "BOB@R", "first"),
        ("fold", "U1@R", "regex-u1"),
        ("keep", "Bob@R", "first"), ("keep", "BOB@R", "BOB"), ("keep", "U1@R", "U1"),
    ):  # fmt: skip
        mapped = PrincipalMap([RealmRule("R")], rules, case="fold" if case == "fold" else "keep").map(principal)
        assert isinstance(mapped, Mapped)
        assert mapped.mailbox == mailbox, (case, principal)


def test_nobody_comes_when_no_realm_is_listed() -> None:
    result = PrincipalMap([]).map("alice@EXAMPLE.ORG")
    assert isinstance(result, NotMapped)
    assert result.reason is MapRefusal.REALM


def test_regex_that_makes_nothing_is_refused() -> None:
    empty = PrincipalMap([RealmRule("R")], [regex_rule(r"(x)?alice@R", r"\1")])
    result = empty.map("alice@R")
    assert isinstance(result, NotMapped)
    assert result.reason is MapRefusal.MALFORMED


@pytest.mark.parametrize(("pattern", "mailbox"), [("(", "x"), ("(a)", r"\2"), ("(a)", r"\g<who>"), ("a", "\\")])
def test_regex_and_mailbox_must_fit(pattern: str, mailbox: str) -> None:
    with pytest.raises(ConfigError, match="correct the rule"):
        regex_rule(pattern, mailbox)


def test_every_problem_of_a_table_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_table(b"alice@R a\nalice@R b\nbob c\ncarol@R\n\xff@R d\n  # nothing\n", "/etc/table")
    assert [problem.where for problem in caught.value.problems] == [f"/etc/table:{n}" for n in (2, 3, 4, 5)]


# ---- backwards ----


BOOK = parse_table(
    b"root/mail@EXAMPLE.ORG postmaster\nrobert@EXAMPLE.ORG Bob\n"
    b"anna@EXAMPLE.ORG sales\nberta@EXAMPLE.ORG sales\ncarla@GONE.ORG carla2\ndora@EXAMPLE.ORG emil\n",
    "table",
)
BACK = PrincipalMap(
    [RealmRule("EXAMPLE.ORG"), RealmRule("OTHER.ORG", "other.org"), RealmRule("STRICT.ORG", by_name=False)],
    [TableRule("table", lambda: BOOK), regex_rule(r"(s-\w+)@STRICT\.ORG", r"\1")],
)


@pytest.mark.parametrize(
    ("user", "principal"),
    [
        ("alice", "alice@EXAMPLE.ORG"),
        ("alice@other.org", "alice@OTHER.ORG"),
        ("bob", "robert@EXAMPLE.ORG"),
        ("postmaster", "root/mail@EXAMPLE.ORG"),
        ("s-anna", "s-anna@EXAMPLE.ORG"),
        ("sales", None),  # a mailbox of two people
        ("carla2", "carla2@EXAMPLE.ORG"),  # the table's realm is not listed
        ("robert", None),  # whose principal has the mailbox bob
        ("emil", "dora@EXAMPLE.ORG"),
        ("alice@elsewhere.org", None),
        ("alice/admin", None),
        ("a@b@other.org", None),
        ("alice\\", None),
        ("", None),
    ],
)
def test_backwards(user: str, principal: str | None) -> None:
    assert BACK.principal_of(user, str.lower) == principal


def test_backwards_through_a_long_table_which_changes() -> None:
    """Nobody's login waits until each of its lines has been looked at, except the first after a change."""
    tables = [{f"{n}@EXAMPLE.ORG": f"box-{n}" for n in range(1000)}]
    asked: list[str] = []

    def canonical(name: str) -> str:
        asked.append(name)
        return name.lower()

    rules = PrincipalMap([RealmRule("EXAMPLE.ORG")], [TableRule("t", lambda: tables[-1])])
    for n in range(100):
        assert rules.principal_of(f"box-{n}", canonical) == f"{n}@EXAMPLE.ORG"
    assert len(asked) < 1300
    tables.append({"other@EXAMPLE.ORG": "box-1"})
    assert rules.principal_of("box-1", canonical) == "other@EXAMPLE.ORG"
    assert rules.principal_of("box-2", canonical) == "box-2@EXAMPLE.ORG"


def test_backwards_with_a_default_domain() -> None:
    def canonical(name: str) -> str:
        return name.lower() if "@" in name else f"{name.lower()}@example.org"

    assert BACK.principal_of("alice@example.org", canonical) == "alice@EXAMPLE.ORG"
    assert BACK.principal_of("alice@other.org", canonical) == "alice@OTHER.ORG"
    assert BACK.principal_of("bob@example.org", canonical) == "robert@EXAMPLE.ORG"


@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_forwards_from_backwards_is_the_same_mailbox(user: str) -> None:
    principal = BACK.principal_of(user, str.lower)
    if principal is not None:
        mapped = BACK.map(principal)
        assert isinstance(mapped, Mapped)
        assert mapped.mailbox.lower() == user
