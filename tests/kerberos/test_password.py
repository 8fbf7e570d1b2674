"""Passwords against a real KDC, a silent one, a dead one and a false one."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.auth.kerberos import RememberingKdc
from popproxy.errors import ConfigError, Unavailable
from popproxy.kerberos.password import KdcPassword, PasswordRefusal, PasswordRefused
from popproxy.state.executors import BoundedExecutor
from popproxy.state.remembered import Remembered
from popproxy.types import Secret
from tests.kerberos.conftest import ALICE, POP
from tests.peers.canaries import leaks
from tests.peers.kdc import REALM, Realm, realm


@pytest.fixture
def checker(keytab: Path, pool: BoundedExecutor) -> KdcPassword:
    return KdcPassword(keytab, POP, [REALM], executor=pool)


@pytest.fixture
def own_kdc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Realm]:
    """A realm that the test may harm."""
    with realm() as it:
        it.user("alice")
        it.service("pop/localhost")
        monkeypatch.setenv("KRB5_CONFIG", str(it.config))
        yield it


async def reason_of(checker: KdcPassword, user: str, password: str) -> PasswordRefusal:
    with pytest.raises(PasswordRefused) as caught:
        await checker.check(user, Secret(password))
    assert not leaks(str(caught.value).encode())
    return caught.value.reason


async def test_right_password(kdc: Realm, checker: KdcPassword) -> None:
    assert await checker.check("alice", Secret(kdc.passwords["alice"])) == ALICE
    assert await checker.check(ALICE, Secret(kdc.passwords["alice"])) == ALICE


async def test_wrong_password_and_unknown_user_are_not_told_apart(kdc: Realm, checker: KdcPassword) -> None:
    assert await reason_of(checker, "alice", kdc.passwords["bob"]) is PasswordRefusal.WRONG
    assert await reason_of(checker, "nobody", kdc.passwords["bob"]) is PasswordRefusal.WRONG


async def test_who_was_right_a_moment_ago_is_right_while_the_kdc_is_silent(kdc: Realm, checker: KdcPassword) -> None:
    counted = {("kerberos", "hit"): 0.0, ("kerberos", "miss"): 0.0}
    remembering = RememberingKdc(checker, Remembered[str](3600), counted)
    right = Secret(kdc.passwords["alice"])
    assert await remembering.check("alice", right) == ALICE
    with kdc.silent():
        assert await remembering.check("alice", right) == ALICE
    for _ in range(2):
        with pytest.raises(PasswordRefused):
            await remembering.check("alice", Secret(kdc.passwords["bob"]))
    assert counted == {("kerberos", "hit"): 1, ("kerberos", "miss"): 3}


async def test_wrong_password_with_preauthentication(kdc: Realm, checker: KdcPassword) -> None:
    password = kdc.user("carol", "+requires_preauth")
    assert await checker.check("carol", Secret(password)) == ALICE.replace("alice", "carol")
    assert await reason_of(checker, "carol", password + "x") is PasswordRefusal.WRONG


async def test_what_c_would_cut_short_is_refused(kdc: Realm, checker: KdcPassword) -> None:
    password = kdc.passwords["alice"]
    assert await reason_of(checker, "alice", password + "\0x") is PasswordRefusal.WRONG
    assert await reason_of(checker, "alice\0x", password) is PasswordRefusal.WRONG
    assert await reason_of(checker, "alice", "") is PasswordRefusal.WRONG


@pytest.mark.parametrize("user", ["alice@ELSEWHERE.TEST", "alice@X\\@POPPROXY.TEST", "a@b@c", "al\udce9ice", "@", "/"])
async def test_names_that_no_kdc_of_ours_could_know_are_wrong(kdc: Realm, checker: KdcPassword, user: str) -> None:
    with kdc.silent():  # nobody is asked
        assert await reason_of(checker, user, kdc.passwords["alice"]) is PasswordRefusal.WRONG


async def test_disabled_and_expired(kdc: Realm, checker: KdcPassword) -> None:
    locked = kdc.user("locked", "-allow_tix")
    assert await reason_of(checker, "locked", locked) is PasswordRefusal.REVOKED
    old = kdc.user("old", "+needchange")
    assert await reason_of(checker, "old", old) is PasswordRefusal.EXPIRED


@pytest.mark.parametrize("rotated", [False, True], ids=["other-keys", "stale-keytab"])
async def test_kdc_that_does_not_know_our_key_is_not_believed(
    own_kdc: Realm, pool: BoundedExecutor, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    keytab = own_kdc.keytab("pop/localhost")
    checker = KdcPassword(keytab, POP, [REALM], executor=pool)
    password = own_kdc.passwords["alice"]
    assert await checker.check("alice", Secret(password)) == ALICE
    if rotated:
        own_kdc.rotate("pop/localhost")
        with pytest.raises(Unavailable) as caught:
            await checker.check("alice", Secret(password))
    else:
        with realm(own_kdc.name) as forged:
            chosen = forged.user("alice")
            forged.service("pop/localhost")
            monkeypatch.setenv("KRB5_CONFIG", str(forged.config))
            other_pool = BoundedExecutor("forged", threads=1, queue_limit=1, deadline=20)
            fooled = KdcPassword(forged.keytab("pop/localhost"), POP, [REALM], executor=other_pool)
            assert await fooled.check("alice", Secret(chosen)) == ALICE, "the false KDC would do, but for the keytab"
            with pytest.raises(Unavailable) as caught:
                await KdcPassword(keytab, POP, [REALM], executor=other_pool).check("alice", Secret(chosen))
            other_pool.close()
    assert caught.value.reason == "kdc_not_proven"
    assert not leaks(str(caught.value).encode())


async def test_kdc_that_knows_no_service_of_ours_is_not_believed(own_kdc: Realm, pool: BoundedExecutor) -> None:
    keytab = own_kdc.keytab("pop/localhost")
    own_kdc.kadmin("delprinc", "-force", "pop/localhost")
    with pytest.raises(Unavailable) as caught:
        await KdcPassword(keytab, POP, [REALM], executor=pool).check("alice", Secret(own_kdc.passwords["alice"]))
    assert caught.value.reason == "kdc_not_proven"


async def test_kdc_that_goes_down_before_its_proof_is_no_false_one(
    kdc: Realm, keytab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One answer, about the password, is passed on to the client; then nobody listens."""

    def pass_one_on(front: socket.socket) -> None:
        request, client = front.recvfrom(65536)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
            back.settimeout(60)
            back.sendto(request, ("127.0.0.1", kdc.port))
            answer = back.recv(65536)
        front.sendto(answer, client)
        front.close()

    front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    front.bind(("127.0.0.1", 0))
    config = tmp_path / "krb5.conf"
    config.write_text(kdc.config.read_text().replace(f":{kdc.port}\n", f":{front.getsockname()[1]}\n"))
    monkeypatch.setenv("KRB5_CONFIG", str(config))
    once = threading.Thread(target=pass_one_on, args=(front,), daemon=True)
    once.start()
    own_pool = BoundedExecutor("once", threads=1, queue_limit=1, deadline=60)
    with pytest.raises(Unavailable) as caught:
        await KdcPassword(keytab, POP, [REALM], executor=own_pool).check("alice", Secret(kdc.passwords["alice"]))
    own_pool.close()
    once.join(20)
    assert not once.is_alive()
    assert caught.value.reason == "kdc"


async def test_keytab_that_vanishes_lets_nobody_in(kdc: Realm, checker: KdcPassword, keytab: Path) -> None:
    keytab.unlink()
    with pytest.raises(Unavailable) as caught:
        await checker.check("alice", Secret(kdc.passwords["alice"]))
    assert caught.value.reason == "kdc_not_proven"


def test_no_keytab_no_method(kdc: Realm, tmp_path: Path, pool: BoundedExecutor) -> None:
    with pytest.raises(ConfigError, match="keytab cannot be read"):
        KdcPassword(tmp_path / "missing", POP, [REALM], executor=pool)


async def test_dead_kdc_is_unavailable(own_kdc: Realm, pool: BoundedExecutor) -> None:
    checker = KdcPassword(own_kdc.keytab("pop/localhost"), POP, [REALM], executor=pool)
    own_kdc.stop()
    with pytest.raises(Unavailable):
        await checker.check("alice", Secret(own_kdc.passwords["alice"]))
    own_kdc.start()
    assert await checker.check("alice", Secret(own_kdc.passwords["alice"])) == ALICE


async def test_silent_kdc_is_unavailable_at_the_deadline(own_kdc: Realm) -> None:
    impatient = BoundedExecutor("impatient", threads=1, queue_limit=1, deadline=0.5)
    checker = KdcPassword(own_kdc.keytab("pop/localhost"), POP, [REALM], executor=impatient)
    secret = Secret(own_kdc.passwords["alice"])
    assert await checker.check("alice", secret) == ALICE
    with own_kdc.silent():
        started = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await checker.check("alice", secret)
        assert time.monotonic() - started < 10, "the library's own patience is half a minute"
        assert caught.value.reason == "deadline"
        assert impatient.abandoned == 1
    while impatient.busy:
        await asyncio.sleep(0.05)
    assert await checker.check("alice", secret) == ALICE
    impatient.close()
