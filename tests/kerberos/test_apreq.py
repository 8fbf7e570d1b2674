"""AP-REQs from libkrb5 itself, good and bad, against the verifier."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popproxy.errors import ConfigError, Unavailable
from popproxy.kerberos.apreq import ApReqAccepted, ApReqVerifier
from popproxy.kerberos.refusal import MAX_TOKEN, KerberosRefused, Refusal
from popproxy.state.executors import BoundedExecutor
from tests.kerberos.conftest import ALICE, POP
from tests.peers.kdc import REALM, Realm
from tests.peers.kpop_client import error_code
from tests.peers.krb5_client import KRB5_OID, ApReqClient, initiator, resident_octets
from tests.peers.process import REPOSITORY


def refused(verifier: ApReqVerifier, ap_req: bytes) -> KerberosRefused:
    with pytest.raises(KerberosRefused) as caught:
        verifier.verify(ap_req)
    token = caught.value.token
    assert token is not None
    assert token[0] == 0x7E, "not a KRB-ERROR"
    assert b"authentication failed" in token
    assert b"alice" not in token
    assert caught.value.__cause__ is None
    return caught.value


def judged(verifier: ApReqVerifier, ap_req: bytes) -> ApReqAccepted | KerberosRefused:
    try:
        return verifier.verify(ap_req)
    except KerberosRefused as refusal:
        return refusal


def test_ticket_is_accepted_and_the_client_is_convinced(verifier: ApReqVerifier, tickets: Path) -> None:
    client = ApReqClient(tickets)
    accepted = verifier.verify(client.ap_req)
    assert (accepted.client, accepted.server) == (ALICE, POP)
    assert accepted.enctype == "aes256-cts-hmac-sha1-96"
    assert time.time() < accepted.endtime <= time.time() + 86400 + 1
    assert accepted.mutual_reply is not None
    assert client.accepts(accepted.mutual_reply)
    assert not ApReqClient(tickets).accepts(accepted.mutual_reply)


def test_no_reply_for_a_client_that_does_not_ask_for_one(verifier: ApReqVerifier, tickets: Path) -> None:
    assert verifier.verify(ApReqClient(tickets, mutual=False).ap_req).mutual_reply is None


async def test_check_runs_in_the_pool(verifier: ApReqVerifier, tickets: Path) -> None:
    assert (await verifier.check(ApReqClient(tickets).ap_req)).client == ALICE


async def test_closed_pool_is_no_refusal(verifier: ApReqVerifier, tickets: Path, pool: BoundedExecutor) -> None:
    pool.close()
    with pytest.raises(Unavailable):
        await verifier.check(ApReqClient(tickets).ap_req)


def test_replay_is_refused(verifier: ApReqVerifier, tickets: Path) -> None:
    ap_req = ApReqClient(tickets).ap_req
    verifier.verify(ap_req)
    for _ in range(20):
        refusal = refused(verifier, ap_req)
        assert refusal.reason is Refusal.REPLAY
        assert not refusal.temporary
        assert refusal.token is not None
        assert error_code(refusal.token) == 34


_OTHER_PROCESS = """
import sys
from pathlib import Path
from popproxy.kerberos.apreq import ApReqAccepted, ApReqVerifier
from popproxy.kerberos.refusal import KerberosRefused
from popproxy.state.executors import BoundedExecutor
keytab, rcache, principal = sys.argv[1:]
verifier = ApReqVerifier(Path(keytab), [principal], rcache_dir=Path(rcache), executor=BoundedExecutor("k", 1, 1, 1))
try:
    print(verifier.verify(sys.stdin.buffer.read()).client)
except KerberosRefused as refused:
    print(refused.reason)
"""


def in_another_process(verifier: ApReqVerifier, ap_req: bytes, rcache_dir: Path) -> str:
    command = [sys.executable, "-c", _OTHER_PROCESS, str(verifier.keytab), str(rcache_dir), POP]
    done = subprocess.run(command, input=ap_req, cwd=REPOSITORY, capture_output=True, check=True, timeout=60)
    return done.stdout.decode().strip()


def test_replay_in_another_process_is_refused(
    verifier: ApReqVerifier, tickets: Path, rcache_dir: Path, tmp_path: Path
) -> None:
    here_first, there_first = ApReqClient(tickets).ap_req, ApReqClient(tickets).ap_req
    verifier.verify(here_first)
    assert in_another_process(verifier, here_first, rcache_dir) == "replay"
    assert in_another_process(verifier, there_first, rcache_dir) == ALICE
    assert refused(verifier, there_first).reason is Refusal.REPLAY
    lonely = tmp_path / "lonely"
    lonely.mkdir(mode=0o700)
    assert in_another_process(verifier, here_first, lonely) == ALICE, "the shared cache is what refuses"


@pytest.mark.parametrize("service", [f"ftp/localhost@{REALM}", f"pop/elsewhere.test@{REALM}"])
def test_ticket_for_another_service_of_the_keytab_is_refused(
    verifier: ApReqVerifier, tickets: Path, service: str
) -> None:
    refusal = refused(verifier, ApReqClient(tickets, service).ap_req)
    assert refusal.reason is Refusal.WRONG_SERVICE
    assert refusal.token is not None
    assert error_code(refusal.token) == 35


def test_ticket_renamed_to_our_service_is_refused(verifier: ApReqVerifier, tickets: Path) -> None:
    ap_req = ApReqClient(tickets, f"ftp/localhost@{REALM}").ap_req
    assert ap_req.count(b"ftp") == 1
    refused(verifier, ap_req.replace(b"ftp", b"pop"))


def test_services_that_share_one_key_are_told_apart_by_the_keytab(
    kdc: Realm, tickets: Path, rcache_dir: Path, pool: BoundedExecutor
) -> None:
    """As in the keytab of an Active Directory account, where host/ stands before pop/ with the same key."""
    keytab = kdc.keytab("pop/localhost")
    version, entry = keytab.read_bytes()[:2], keytab.read_bytes()[2:]
    keytab.write_bytes(version + entry.replace(b"pop", b"ftp") + entry)
    verifier = ApReqVerifier(keytab, [POP], rcache_dir=rcache_dir, executor=pool)
    assert verifier.verify(ApReqClient(tickets).ap_req).server == POP


def test_other_realm_in_the_keytab_is_refused(
    verifier: ApReqVerifier, keytab: Path, tickets: Path, rcache_dir: Path, pool: BoundedExecutor
) -> None:
    stranger = ApReqVerifier(keytab, ["pop/localhost@ELSEWHERE.TEST"], rcache_dir=rcache_dir, executor=pool)
    assert refused(stranger, ApReqClient(tickets).ap_req).reason is Refusal.WRONG_REALM
    anywhere = ApReqVerifier(keytab, ["pop/localhost"], rcache_dir=rcache_dir, executor=pool)
    assert anywhere.verify(ApReqClient(tickets).ap_req).server == POP


@pytest.mark.parametrize("shift", [-3600, 3600])
def test_clock_that_is_wrong_by_an_hour_is_refused(verifier: ApReqVerifier, tickets: Path, shift: int) -> None:
    refusal = refused(verifier, ApReqClient(tickets, shift=shift).ap_req)
    assert refusal.reason is Refusal.SKEW
    assert refusal.token is not None
    assert error_code(refusal.token) == 37


async def test_expired_ticket_is_refused(
    kdc: Realm, keytab: Path, rcache_dir: Path, pool: BoundedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ccache = kdc.kinit("alice", "-l", "4s")
    kdc.kvno(ccache, "pop/localhost")
    monkeypatch.setenv("KRB5_CONFIG", str(kdc.configuration("strict.conf", clockskew=1)))
    verifier = ApReqVerifier(keytab, [POP], rcache_dir=rcache_dir, executor=pool)
    end = time.monotonic() + 20
    reason = None
    while reason is not Refusal.EXPIRED and time.monotonic() < end:
        try:
            await verifier.check(ApReqClient(ccache).ap_req)
        except KerberosRefused as refusal:
            reason = refusal.reason
    assert reason is Refusal.EXPIRED


def test_key_that_is_not_in_the_keytab_any_more(kdc: Realm, rcache_dir: Path, pool: BoundedExecutor) -> None:
    kdc.service("pop/rotated.test")
    principal = f"pop/rotated.test@{REALM}"
    keytab = kdc.keytab(principal)
    verifier = ApReqVerifier(keytab, [principal], rcache_dir=rcache_dir, executor=pool)
    old = kdc.kinit("alice")
    kdc.kvno(old, principal)
    verifier.verify(ApReqClient(old, principal).ap_req)
    kdc.rotate(principal)
    new = kdc.kinit("alice")
    kdc.kvno(new, principal)
    unknown = refused(verifier, ApReqClient(new, principal).ap_req)
    assert (unknown.reason, unknown.temporary) == (Refusal.KEYTAB, False)
    kdc.add_to_keytab(keytab, principal)
    assert verifier.verify(ApReqClient(new, principal).ap_req).client == ALICE
    assert verifier.verify(ApReqClient(old, principal).ap_req).client == ALICE
    kdc.keytab(principal).replace(keytab)
    assert verifier.verify(ApReqClient(new, principal).ap_req).client == ALICE
    assert refused(verifier, ApReqClient(old, principal).ap_req).reason is Refusal.KEYTAB


def test_keytab_that_vanishes_is_our_fault(verifier: ApReqVerifier, keytab: Path, tickets: Path) -> None:
    keytab.unlink()
    refusal = refused(verifier, ApReqClient(tickets).ap_req)
    assert (refusal.reason, refusal.temporary) == (Refusal.KEYTAB, True)


def test_replay_cache_that_vanishes_is_our_fault(verifier: ApReqVerifier, tickets: Path, rcache_dir: Path) -> None:
    verifier.replay_cache.path.unlink()
    rcache_dir.rmdir()
    refusal = refused(verifier, ApReqClient(tickets).ap_req)
    assert (refusal.reason, refusal.temporary) == (Refusal.UNAVAILABLE, True)


def test_nothing_is_built_without_its_files(kdc: Realm, keytab: Path, rcache_dir: Path, pool: BoundedExecutor) -> None:
    def build(keytab: Path, directory: Path, *principals: str) -> None:
        ApReqVerifier(keytab, principals, rcache_dir=directory, executor=pool)

    rcache_dir.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write"):
        build(keytab, rcache_dir, POP)
    rcache_dir.chmod(0o700)
    with pytest.raises(ConfigError, match="replay cache cannot be kept"):
        build(keytab, rcache_dir / "missing", POP)
    with pytest.raises(ConfigError, match="replay cache cannot be kept"):
        build(keytab, Path("/proc/self"), POP)
    with pytest.raises(ConfigError, match="keytab cannot be read"):
        build(keytab.with_name("missing"), rcache_dir, POP)
    with pytest.raises(ConfigError, match="not a POP3 service"):
        build(keytab, rcache_dir, f"imap/localhost@{REALM}")
    with pytest.raises(ConfigError, match="there is none"):
        build(keytab, rcache_dir)


def test_mutated_requests_are_refused(verifier: ApReqVerifier, tickets: Path) -> None:
    rng = random.Random(4120)
    ap_req = ApReqClient(tickets).ap_req
    accepted = 0
    for _ in range(2000):
        mutant = bytearray(ap_req)
        match rng.randrange(4):
            case 0:
                mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)
            case 1:
                del mutant[rng.randrange(len(mutant)) :]
            case 2:
                at = rng.randrange(len(mutant))
                mutant[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                at = rng.randrange(len(mutant))
                mutant[at : at + 8] = rng.randbytes(8)
        verdict = judged(verifier, bytes(mutant))
        if isinstance(verdict, KerberosRefused):
            assert not verdict.temporary
            assert verdict.token is not None
        else:
            # what is not protected (padding behind the message, options) may change; the identity may not
            assert verdict.client == ALICE
            accepted += 1
    assert accepted <= 1, "the second of two requests with one authenticator is a replay"


@pytest.mark.parametrize("binding", [None, b"tls-server-end-point:" + bytes(32)])
def test_request_made_for_gssapi_is_refused(verifier: ApReqVerifier, tickets: Path, binding: bytes | None) -> None:
    """Nothing here looks at the channel that it is bound to: whoever has caught it could come in by KPOP."""
    token = initiator(tickets, channel_binding=binding).step() or b""
    ap_req = token.partition(KRB5_OID + b"\x01\x00")[2]
    assert refused(verifier, ap_req).reason is Refusal.GARBAGE
    assert refused(verifier, ap_req).reason is Refusal.REPLAY


@pytest.mark.parametrize("octets", [b"", b"\x6e", b"\x00" * 600, b"\x6e\x82\xff\xff" + b"A" * 500, b"KPOPV1.0\0"])
def test_garbage_is_refused(verifier: ApReqVerifier, octets: bytes) -> None:
    assert refused(verifier, octets).reason is Refusal.GARBAGE


def test_request_beyond_the_limit_is_refused_unread(verifier: ApReqVerifier, tickets: Path) -> None:
    ap_req = ApReqClient(tickets).ap_req
    assert refused(verifier, ap_req + bytes(MAX_TOKEN + 1 - len(ap_req))).reason is Refusal.GARBAGE
    assert verifier.verify(ap_req).client == ALICE, "it was not looked at, so it is no replay"


def test_ten_thousand_checks_leave_no_memory_behind(verifier: ApReqVerifier, tickets: Path) -> None:
    good, bad = ApReqClient(tickets).ap_req, ApReqClient(tickets).ap_req[:-1] + b"\0"
    verifier.verify(good)

    def rounds(number: int) -> int:
        for _ in range(number):
            for ap_req in (good, bad, b"\x6e\x03abc"):
                with pytest.raises(KerberosRefused):
                    verifier.verify(ap_req)
        return resident_octets()

    before = rounds(1000)
    grown = rounds(3000) - before
    fresh = resident_octets()
    for _ in range(1000):
        assert verifier.verify(ApReqClient(tickets).ap_req).client == ALICE
    assert grown < 1_500_000, f"{grown} octets after 9,000 refusals"
    assert resident_octets() - fresh < 1_500_000
