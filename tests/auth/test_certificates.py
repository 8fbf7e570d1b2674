"""Whose a client certificate is: rules, dates, revocation lists, and certificates that nobody should trust."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA256

from popproxy.auth.certificate_names import CertificateRule, Field, by_pattern, parse_table, utf8_string, values
from popproxy.auth.certificates import CertificateProver
from popproxy.auth.names import vet_name
from popproxy.auth.result import Accepted, CannotTell, Rejected
from popproxy.auth.revocation import RevocationLists
from popproxy.errors import ConfigError
from popproxy.sasl.credentials import CertificateCredential
from popproxy.state.executors import BoundedExecutor
from popproxy.types import AuthFailure, Identity, Mechanism
from tests.peers.certs import Authority, CertificateFiles


@pytest.fixture
def issuer(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "clients")


def vet(name: str) -> str:
    return vet_name(name, None, "fold")


def load(files: CertificateFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


def shown(files: CertificateFiles, authzid: str = "") -> CertificateCredential:
    return CertificateCredential(load(files).public_bytes(serialization.Encoding.DER), authzid)


def anything(field: str) -> CertificateRule:
    return CertificateRule(field, by_pattern("(?s:.*)", r"\g<0>"))  # type: ignore[arg-type]


async def judged(prover: CertificateProver, files: CertificateFiles, authzid: str = "") -> str | AuthFailure:
    result = await prover.prove(shown(files, authzid))
    if isinstance(result, Accepted):
        assert result.identity.mechanism is Mechanism.EXTERNAL
        assert result.identity.proven
        return result.identity.user
    assert isinstance(result, Rejected)
    return result.reason


def test_every_field_of_a_certificate(issuer: Authority) -> None:
    files = issuer.client(
        email=["Alice@example.com", "a@example.org"],
        upn="alice@corp.example.com",
        common_name="Alice Jones",
        uid="ajones",
        extra=[x509.DNSName("alice.example.com"), x509.UniformResourceIdentifier("https://example.com/alice")],
    )
    certificate = load(files)
    fields: tuple[Field, ...] = ("email", "upn", "dns", "uri", "common_name", "uid", "subject")
    found = {field: values(certificate, field) for field in fields}
    assert found == {
        "email": ["Alice@example.com", "a@example.org"],
        "upn": ["alice@corp.example.com"],
        "dns": ["alice.example.com"],
        "uri": ["https://example.com/alice"],
        "common_name": ["Alice Jones"],
        "uid": ["ajones"],
        "subject": ["UID=ajones,CN=Alice Jones"],
    }
    assert values(certificate, "fingerprint") == [certificate.fingerprint(SHA256()).hex()]


def test_a_certificate_without_names_has_none(issuer: Authority) -> None:
    certificate = load(issuer.client())
    assert [values(certificate, field) for field in ("email", "upn", "dns", "uri", "uid")] == [[]] * 5


@pytest.mark.parametrize("der", [b"\x05\x00", b"\x13\x03abc", b"\x0c\x01\xff"])
async def test_a_principal_name_that_is_no_text_is_malformed(issuer: Authority, der: bytes) -> None:
    files = issuer.client(extra=[x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), der)])
    assert await judged(CertificateProver([anything("upn")], vet), files) is AuthFailure.MALFORMED


@pytest.mark.parametrize("der", [b"", b"\x0c", b"\x0c\x05abc", b"\x0c\x03abcd", b"\x0c\x81", b"\x0c\x81\x05abc"])
def test_octets_that_are_no_text(der: bytes) -> None:
    with pytest.raises(ValueError, match="UTF8String"):
        utf8_string(der)


def test_a_long_principal_name(issuer: Authority) -> None:
    name = "a" * 200
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x81\xc8" + name.encode())
    assert values(load(issuer.client(extra=[other])), "upn") == [name]


async def test_the_first_rule_that_finds_a_user_decides(issuer: Authority) -> None:
    rules = [
        CertificateRule("email", by_pattern(r"(.*)@staff\.example\.com", r"\1")),
        CertificateRule("common_name", by_pattern("[a-z]+", r"\g<0>@devices")),
        anything("email"),
    ]
    prover = CertificateProver(rules, vet)
    assert await judged(prover, issuer.client(email=["Ann@staff.example.com", "x@y.z"], common_name="ann")) == "ann"
    assert await judged(prover, issuer.client(email=["b@example.com"], common_name="bob")) == "bob@devices"
    assert await judged(prover, issuer.client(email=["C@example.com"], common_name="Carol 1")) == "c@example.com"
    assert await judged(prover, issuer.client(common_name="Dora 1")) is AuthFailure.NOT_MAPPED


@pytest.mark.parametrize(
    ("authzid", "user"),
    [
        ("", AuthFailure.AUTHZID),
        ("a@example.com", "a@example.com"),
        ("A@EXAMPLE.com", "a@example.com"),
        ("b@example.com", "b@example.com"),
        ("c@example.com", AuthFailure.AUTHZID),
        ("a\0@example.com", AuthFailure.CONTROL_CHARACTER),
        ("\udcff", AuthFailure.MALFORMED),
    ],
)
async def test_of_several_users_the_client_chooses_one(
    issuer: Authority, authzid: str, user: str | AuthFailure
) -> None:
    files = issuer.client(email=["a@example.com", "b@example.com", "A@example.com"])
    assert await judged(CertificateProver([anything("email")], vet), files, authzid) == user


async def test_the_record_names_what_the_client_claimed(issuer: Authority) -> None:
    prover = CertificateProver([anything("email")], vet)
    files = issuer.client(email=["Alice@example.com"])
    assert await prover.prove(shown(files)) == Accepted(
        Identity("alice@example.com", "alice@example.com", Mechanism.EXTERNAL)
    )
    assert await prover.prove(shown(files, "ALICE@example.com")) == Accepted(
        Identity("alice@example.com", "ALICE@example.com", Mechanism.EXTERNAL)
    )


@pytest.mark.parametrize("name", ["alice\0@example.com", "a\nb", "\u202ealice", "x" * 300])
async def test_a_name_that_cannot_be_is_refused(issuer: Authority, name: str) -> None:
    find: Callable[[str], str | None] = lambda _: name  # noqa: E731
    prover = CertificateProver([CertificateRule("common_name", find)], vet)
    assert await judged(prover, issuer.client()) in (AuthFailure.CONTROL_CHARACTER, AuthFailure.MALFORMED)


@pytest.mark.parametrize("days", [(-10, -1), (1, 10)])
async def test_a_certificate_out_of_date_is_refused(issuer: Authority, days: tuple[float, float]) -> None:
    """TLS has checked it when the session began, which may have been resumed since."""
    files = issuer.client(email=["a@example.com"], valid_days=days)
    assert await judged(CertificateProver([anything("email")], vet), files) is AuthFailure.CERTIFICATE


@pytest.mark.parametrize("der", [b"", b"0\x00", b"garbage"])
async def test_what_is_no_certificate_is_malformed(der: bytes) -> None:
    result = await CertificateProver([anything("email")], vet).prove(CertificateCredential(der))
    assert result == Rejected(AuthFailure.MALFORMED)


# ---- tables ----


def test_a_table() -> None:
    text = b"# comment\n\nCN=Alice Jones,O=Example   alice\n  CN=Bob bob\r\n"
    assert parse_table(text, "map", "subject") == {"CN=Alice Jones,O=Example": "alice", "CN=Bob": "bob"}
    colons = b"AB:" * 31 + b"CD alice\n"
    assert parse_table(colons, "map", "fingerprint") == {"ab" * 31 + "cd": "alice"}


def test_every_mistake_in_a_table_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_table(b"CN=Alice\nCN=B b\nCN=B c\n\xff x\n", "map", "subject")
    assert [problem.where for problem in caught.value.problems] == ["map:1", "map:3", "map:4"]
    with pytest.raises(ConfigError, match="64 hex digits"):
        parse_table(b"abcd alice\n", "map", "fingerprint")


# ---- revocation ----


async def test_revoked_certificate_is_refused_as_soon_as_the_list_says_so(
    issuer: Authority, tmp_path: Path, executor: BoundedExecutor
) -> None:
    good, bad = issuer.client(email=["good@example.com"]), issuer.client(email=["bad@example.com"])
    path = tmp_path / "crl"
    path.write_bytes(issuer.revocation_list())
    lists = RevocationLists(path, [x509.load_pem_x509_certificate(issuer.ca.read_bytes())], executor)
    prover = CertificateProver([anything("email")], vet, lists)
    assert await judged(prover, bad) == "bad@example.com"
    path.write_bytes(issuer.revocation_list(bad))
    lists._file._next_look = 0
    assert await judged(prover, bad) is AuthFailure.CERTIFICATE
    assert await judged(prover, good) == "good@example.com"


async def test_a_list_that_says_nothing_any_more_is_not_a_rejection(
    issuer: Authority, tmp_path: Path, executor: BoundedExecutor
) -> None:
    other = Authority(tmp_path, "others")
    authorities = [x509.load_pem_x509_certificate(authority.ca.read_bytes()) for authority in (issuer, other)]
    path = tmp_path / "crl"
    for text in (issuer.revocation_list(days=-1), other.revocation_list()):
        path.write_bytes(text)
        lists = RevocationLists(path, authorities, executor)
        result = await CertificateProver([anything("email")], vet, lists).prove(shown(issuer.client(email=["a@b.c"])))
        assert isinstance(result, CannotTell)


def changed(pem: bytes, old: bytes, new: bytes) -> bytes:
    """PEM with other octets in it."""
    begin, *lines, end, _ = pem.split(b"\n")
    der = base64.b64decode(b"".join(lines))
    assert old in der
    return b"\n".join((begin, base64.b64encode(der.replace(old, new, 1)), end, b""))


def partition(**changes: Any) -> x509.IssuingDistributionPoint:
    names = (
        *("full_name", "relative_name", "only_contains_user_certs", "only_contains_ca_certs", "only_some_reasons"),
        *("indirect_crl", "only_contains_attribute_certs"),
    )
    none = {name: None if name.endswith(("name", "reasons")) else False for name in names}
    return x509.IssuingDistributionPoint(**{**none, **changes})


async def test_of_several_lists_the_newest_counts(issuer: Authority, tmp_path: Path, executor: BoundedExecutor) -> None:
    bad, path = issuer.client(email=["bad@example.com"]), tmp_path / "crl"
    new = issuer.revocation_list(bad, age=1, critical=partition(only_contains_user_certs=True))
    for order in ((new, issuer.revocation_list()), (issuer.revocation_list(), new)):
        path.write_bytes(b"".join(order))
        lists = RevocationLists(path, [x509.load_pem_x509_certificate(issuer.ca.read_bytes())], executor)
        assert await judged(CertificateProver([anything("email")], vet, lists), bad) is AuthFailure.CERTIFICATE


def test_lists_that_cannot_be_used_are_told(issuer: Authority, tmp_path: Path, executor: BoundedExecutor) -> None:
    other, path = Authority(tmp_path, "others"), tmp_path / "crl"
    forged = Authority(tmp_path / "..", "clients")  # of the same name, with another key
    authorities = [x509.load_pem_x509_certificate(issuer.ca.read_bytes())]
    good = issuer.revocation_list()
    for text, words in [
        (None, "cannot be read"),
        (b"", "no revocation list"),
        (good.replace(b"M", b"N", 1), "damaged"),
        (changed(good, b"\x02\x01\x01", b"\x02\x01\x41"), "damaged"),  # its version
        (changed(good, b"\x06\x03\x55\x04\x03", b"\x05\x03\x55\x04\x03"), "damaged"),  # inside the issuer's name
        (good + other.revocation_list(), "of no authority in client_ca"),
        (forged.revocation_list(), "not signed by it"),
        (good + issuer.revocation_list(critical=x509.DeltaCRLIndicator(1)), "only a part"),
        (issuer.revocation_list(critical=partition(only_contains_ca_certs=True)), "only a part"),
        (
            issuer.revocation_list(critical=partition(full_name=[x509.UniformResourceIdentifier("http://a/1")])),
            "a part",
        ),
    ]:
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(ConfigError, match=words):
            RevocationLists(path, authorities, executor)
