"""Password hashes, judged by tools that made such hashes before popproxy: openssl, doveadm, perl, published vectors."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import threading

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popproxy.auth import hashes
from popproxy.auth.hashes import UnknownHash, describe, hash_password, require_known, verify, verify_dummy
from popproxy.errors import Unavailable

PASSWORD = "tan staaf: ünï"


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is not installed; run: make setup")
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.mark.real
@pytest.mark.parametrize(("option", "scheme"), [("-1", "md5-crypt"), ("-5", "sha256-crypt"), ("-6", "sha512-crypt")])
def test_hashes_of_openssl_verify(option: str, scheme: str) -> None:
    stored = tool("openssl", "passwd", option, PASSWORD)
    assert describe(stored) == scheme
    assert verify(PASSWORD.encode(), stored)
    assert not verify(PASSWORD.encode() + b" ", stored)
    assert verify(PASSWORD.encode(), "{crypt}" + stored)


@pytest.mark.real
@pytest.mark.parametrize(
    ("dovecot", "scheme"),
    [
        ("ARGON2ID", "argon2id"),
        ("ARGON2I", "argon2i"),
        ("BLF-CRYPT", "bcrypt"),
        ("CRYPT", "bcrypt"),
        ("SHA512-CRYPT", "sha512-crypt"),
        ("SHA256-CRYPT", "sha256-crypt"),
        ("MD5-CRYPT", "md5-crypt"),
        ("MD5", "md5-crypt"),
        ("DES-CRYPT", "des-crypt"),
        ("SSHA", "ssha"),
        ("SHA", "sha"),
        ("SHA1", "sha"),
        ("SSHA256", "ssha256"),
        ("SHA256", "sha256"),
        ("SSHA512", "ssha512"),
        ("SHA512", "sha512"),
    ],
)
def test_hashes_of_doveadm_verify(dovecot: str, scheme: str) -> None:
    stored = tool("doveadm", "pw", "-s", dovecot, "-p", PASSWORD)
    assert stored.startswith("{" + dovecot + "}")
    assert describe(stored) == scheme
    assert verify(PASSWORD.encode(), stored)
    assert not verify(b"x" + PASSWORD.encode(), stored)


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["", "SHA512-CRYPT", "SSHA512", "ARGON2ID"])
def test_doveadm_accepts_what_we_accept_and_refuses_what_we_refuse(scheme: str) -> None:
    stored = tool("doveadm", "pw", "-s", scheme, "-p", PASSWORD) if scheme else "{ARGON2ID}" + hash_password(b"x")
    for password in (PASSWORD, "x", "wrong"):
        theirs = subprocess.run(
            ["doveadm", "pw", "-t", stored, "-p", password], check=False, capture_output=True, timeout=60
        )
        assert verify(password.encode(), stored) == (theirs.returncode == 0)


@pytest.mark.parametrize(
    ("stored", "password", "scheme"),
    [
        # The first entry of TESTS-OK in the reference implementation of yescrypt
        ("$y$jD5.7$LdJMENpBABJJ3hIHjB1Bi.$HboGM6qPrsK.StKYGt6KErmUYtioHreJd98oIugoNB6", "pleaseletmein", "yescrypt"),
        # unix-scrypt.txt, which gives test vector 3 of RFC 7914 section 12 in this form
        ("$7$C6..../....SodiumChloride$kBGj9fHznVYFQMEn/qDCfrDevf9YDtcDdKvEqHJLV8D", "pleaseletmein", "scrypt"),
        # The specification of SHA-crypt (U. Drepper)
        (
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            "Hello world!",
            "sha512-crypt",
        ),
        # Openwall's test suites of crypt_blowfish and of traditional DES
        ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U", "bcrypt"),
        ("$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U", "bcrypt"),
        ("CCNf8Sbh3HDfQ", "U*U*U*U*", "des-crypt"),
        ("CCX.K.MFy4Ois", "U*U***U", "des-crypt"),
    ],
)
def test_published_vectors(stored: str, password: str, scheme: str) -> None:
    assert describe(stored) == scheme
    assert verify(password.encode(), stored)
    assert not verify(b"x" + password.encode(), stored)


def test_our_own_hash_is_argon2id_with_the_low_memory_parameters_of_rfc_9106() -> None:
    stored = hash_password(PASSWORD.encode())
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert describe(stored) == "argon2id"
    assert verify(PASSWORD.encode(), stored)
    assert not verify(PASSWORD.encode()[:-1], stored)
    assert hash_password(PASSWORD.encode()) != stored


def test_bcrypt_sees_72_octets_as_the_systems_do_that_made_the_hash() -> None:
    stored = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert verify(b"x" * 72, stored)
    assert verify(b"x" * 100, stored)
    assert not verify(b"x" * 71, stored)


@settings(max_examples=50)
@given(st.binary(max_size=40), st.binary(min_size=1, max_size=16), st.sampled_from(["sha1", "sha256", "sha512"]))
def test_ldap_forms_agree_with_their_definition(password: bytes, salt: bytes, algorithm: str) -> None:
    digest = hashlib.new(algorithm, password + salt).digest()
    stored = "{SSHA" + algorithm.removeprefix("sha").removeprefix("1") + "}" + base64.b64encode(digest + salt).decode()
    assert verify(password, stored)
    assert not verify(password + b"x", stored)
    unsalted = stored.replace("{SSHA", "{SHA")
    with pytest.raises(UnknownHash):
        verify(password, unsalted)


@pytest.mark.parametrize("stored", ["{PLAIN}canary-5ecret", "{CLEARTEXT}canary-5ecret", "{plain}canary-5ecret"])
def test_password_in_clear_is_refused_with_the_cure_and_not_shown(stored: str) -> None:
    with pytest.raises(UnknownHash, match=r"clear.*popproxy hash-password") as refused:
        verify(b"canary-5ecret", stored)
    assert "canary-5ecret" not in f"{refused.value} {refused.value!r}"
    assert describe(stored) is None


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "canary-5ecret",
        "$9$abc$def",
        "$6$salt$tooshort",
        "{SSHA}canary-5ecret",
        "{SSHA}AAAA",
        "{CRYPT}canary-5ecret",
        "{ROT13}canary-5ecret",
        "{SHA512-CRYPT}$1$abcdefgh$canaryaaaaaaaaaaaaaaaa",
        "$2b$99$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        "$argon2id$v=19$m=1,t=0,p=0$canary5ecret$canary5ecret",
        "$y$canary$canary$" + "a" * 43,
    ],
)
def test_what_is_not_a_hash_is_an_error_and_not_a_wrong_password(stored: str) -> None:
    with pytest.raises(UnknownHash) as refused:
        verify(b"x", stored)
    assert "canary" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("stored", ["$1$abcdefgh$PqnZ8rI/3fFUCjMQ0wyJp1\n", "CCNf8Sbh3HDfQ\n"])
def test_line_end_is_not_part_of_a_hash(stored: str) -> None:
    with pytest.raises(UnknownHash):
        require_known(stored)


def test_nul_and_overlong_passwords_match_no_crypt_hash() -> None:
    stored = "CCX.K.MFy4Ois"
    assert verify(b"U*U***U", stored)
    assert not verify(b"U*U***U\0anything", stored)
    assert not verify(b"U*U***U" * 200, stored)


def test_hash_with_a_cost_beyond_the_machine_is_our_failure() -> None:
    salt = "c2FsdHNhbHRzYWx0c2FsdA"
    with pytest.raises(Unavailable):
        verify(b"x", f"$argon2id$v=19$m=4000000000,t=1,p=1${salt}${salt}")


def test_dummy_verification_uses_one_hash_of_full_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def record(password: bytes, stored: str) -> bool:
        seen.append(stored)
        return False

    monkeypatch.setattr(hashes, "verify", record)
    verify_dummy(b"one")
    verify_dummy(b"two")
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0].split("$")[:4] == hash_password(b"x").split("$")[:4]


def test_crypt_lets_other_threads_run() -> None:
    """With a binding that keeps the interpreter lock, the counter would stand still during the whole call."""
    stored = "$6$rounds=500000$saltsalt$" + "a" * 86
    done = threading.Event()

    def work() -> None:
        verify(b"x", stored)
        done.set()

    hashing = threading.Thread(target=work)
    hashing.start()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    hashing.join()
    assert turns >= 3
