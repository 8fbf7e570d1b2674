"""The vault's file: whatever is not as it was written is noticed, and the line is named."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import VaultError
from popproxy.types import Secret
from popproxy.vault.format import Cipher, Contents, decode, encode, generate_key, new_salt

KEY = Secret(generate_key())
CANARY = "canary-5ecret"
USERS = ("alice", "bob", "carol", "j\u00fcrgen")


def make(*users: str, secret: str = CANARY, key: Secret = KEY, salt: bytes | None = None, revision: int = 1) -> bytes:
    salt = salt or new_salt()
    cipher = Cipher(key, salt)
    return encode(
        Contents(salt, revision, {user: cipher.seal(user, revision, Secret(secret)) for user in users}), cipher
    )


FILE = make(*USERS)
LINES = FILE.splitlines(keepends=True)


def complaint(octets: bytes) -> str:
    with pytest.raises(VaultError) as refused:
        decode(octets, KEY, "vault")
    assert CANARY not in f"{refused.value}{refused.value!r}"
    assert KEY.reveal().decode() not in str(refused.value)
    return str(refused.value)


def line_of(octets: bytes) -> int:
    return int(complaint(octets).split(":")[1])


def test_keys_are_fresh_and_of_32_octets() -> None:
    keys = {generate_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {32}


@pytest.mark.long
def test_every_single_bit_is_vouched_for() -> None:
    for position in range(len(FILE)):
        for bit in range(8):
            octets = bytearray(FILE)
            octets[position] ^= 1 << bit
            with pytest.raises(VaultError):
                decode(bytes(octets), KEY, "vault")


def test_every_truncation_is_noticed() -> None:
    for size in range(len(FILE)):
        with pytest.raises(VaultError):
            decode(FILE[:size], KEY, "vault")


@given(st.binary(min_size=1, max_size=8), st.integers(0, len(FILE)), st.integers(0, 8))
def test_any_insertion_or_replacement_is_noticed(octets: bytes, position: int, removed: int) -> None:
    changed = FILE[:position] + octets + FILE[position + removed :]
    if changed != FILE:
        complaint(changed)


@given(st.permutations(range(len(LINES))))
def test_any_order_of_lines_but_the_right_one_is_noticed(order: list[int]) -> None:
    octets = b"".join(LINES[number] for number in order)
    if octets != FILE:
        complaint(octets)


@given(st.binary(max_size=400))
def test_any_octets_are_refused_by_a_vault_error(octets: bytes) -> None:
    complaint(octets)
    complaint(LINES[0] + octets)


@pytest.mark.parametrize("number", range(1, len(LINES) + 1))
def test_missing_line_is_noticed(number: int) -> None:
    complaint(b"".join(line for at, line in enumerate(LINES, start=1) if at != number))


@pytest.mark.parametrize("number", range(2, len(LINES)))
def test_altered_entry_is_named_by_its_line(number: int) -> None:
    for key in ("nonce", "secret"):
        fields = json.loads(LINES[number - 1])
        octets = bytearray(base64.b64decode(fields[key]))
        octets[0] ^= 1
        fields[key] = base64.b64encode(octets).decode()
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        changed = [*LINES[: number - 1], line, *LINES[number:]]
        assert line_of(b"".join(changed)) == number


def test_secrets_swapped_between_users_are_named_by_their_line() -> None:
    alice, bob = json.loads(LINES[1]), json.loads(LINES[2])
    alice["user"], bob["user"] = bob["user"], alice["user"]
    swapped = [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in (bob, alice)]
    assert line_of(b"".join([LINES[0], *swapped, *LINES[3:]])) == 2


def test_old_entry_in_a_new_file_is_noticed() -> None:
    salt = new_salt()
    old = make("alice", "bob", salt=salt, revision=1).splitlines(keepends=True)
    new = make("alice", "bob", salt=salt, revision=2, secret="new").splitlines(keepends=True)
    decode(b"".join(new), KEY, "vault")
    assert line_of(b"".join([new[0], old[1], *new[2:]])) == 4


def test_entry_of_another_vault_under_the_same_key_is_named() -> None:
    other = make(*USERS).splitlines(keepends=True)
    assert line_of(b"".join([LINES[0], LINES[1], other[2], *LINES[3:]])) == 3


@pytest.mark.parametrize(
    ("octets", "where", "what"),
    [
        (b"", 1, "not a popproxy vault"),
        (b"alice:secret\n", 1, "not a popproxy vault"),
        (b"[" * 100_000, 1, "not a popproxy vault"),
        (LINES[0].replace(b'vault":1', b'vault":2'), 1, "a kind that this version does not know"),
        (LINES[0], 1, "ends too early"),
        (b"".join(LINES[:-1]), len(LINES) - 1, "ends too early"),
        (FILE[:-1], len(LINES), "ends too early"),
        (b"".join([*LINES[:2], b"rubbish\n", *LINES[2:]]), 3, "damaged"),
        (b"".join([*LINES[:2], *LINES[1:]]), 3, "moved or doubled"),
        (b"".join([LINES[0], LINES[2], LINES[1], *LINES[3:]]), 3, "moved or doubled"),
    ],
)
def test_what_is_wrong_is_said_with_line_and_cure(octets: bytes, where: int, what: str) -> None:
    said = complaint(octets)
    assert said.startswith(f"vault:{where}: ")
    assert what in said
    assert ";" in said


def test_format_is_what_its_documentation_says(tmp_path: Path) -> None:
    """Opened here by the documentation alone, so that another program could."""
    header, entry, _ = map(json.loads, make("alice").splitlines())
    salt = bytes.fromhex(header["salt"])
    master = base64.b64decode(KEY.reveal())
    key_id = HKDF(SHA256(), 8, salt, b"popproxy vault 1 key id").derive(master)
    key = HKDF(SHA256(), 32, salt, b"popproxy vault 1 entries").derive(master)
    data = f'[1,"{header["salt"]}","alice",1]\n'.encode()
    padded = AESGCM(key).decrypt(base64.b64decode(entry["nonce"]), base64.b64decode(entry["secret"]), data)
    assert header["key"] == key_id.hex()
    assert padded == CANARY.encode() + b"\x80" + bytes(511 - len(CANARY))


def test_same_secret_never_looks_the_same() -> None:
    boxes = {json.loads(line)["secret"] for line in make(*USERS, secret="same").splitlines()[1:-1]}
    assert len(boxes) == len(USERS)


@given(st.binary(min_size=1, max_size=300))
def test_padding_gives_back_any_secret(secret: bytes) -> None:
    cipher = Cipher(KEY, new_salt())
    assert cipher.unseal(cipher.seal("alice", 1, Secret(secret))).reveal() == secret


def test_nothing_prints_a_secret_or_a_key() -> None:
    contents, cipher = decode(FILE, KEY, "vault")
    shown = f"{contents!r}{cipher!r}{vars(cipher)!r}"
    assert CANARY not in shown
    assert KEY.reveal().decode() not in shown
    assert repr(base64.b64decode(KEY.reveal())) not in shown
