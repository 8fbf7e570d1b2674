"""A KDC that is stopped, stands still, or answers nothing: tickets go on, passwords wait, nobody else does."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.deaf_kdc import DeafKdc, deaf_kdc
from tests.peers.kpop_client import KpopClient
from tests.peers.krb5_client import ApReqClient
from tests.peers.line_client import LineClient
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import Proxy, proxies
from tests.real.kerberos_clients import (
    IN,
    TRY_LATER,
    at_choice,
    b64,
    by_kpop,
    next_session_is_fine,
    password_login,
    refused,
)
from tests.real.kerberos_rig import Site, configuration, curl

OUTAGES = ["stopped", "still", "deaf"]
DEADLINE = 3.0  # seconds, in the configuration
PATIENCE = 25.0  # of a test on a busy machine; the library's own, without a deadline, is half a minute


@contextlib.contextmanager
def outage(it: Site, how: str) -> Iterator[DeafKdc | None]:
    """The KDC is `how` for the length of a with statement."""
    with contextlib.ExitStack() as stack:
        deaf = None
        if how == "still":
            stack.enter_context(it.realm.silent())
        else:
            it.realm.stop()
            stack.callback(it.realm.start)
            if how == "deaf":
                deaf = stack.enter_context(deaf_kdc(it.realm.port))
        yield deaf


@contextlib.contextmanager
def small_proxy(it: Site, certificate: CertificateFiles, **kerberos: object) -> Iterator[Proxy]:
    with proxies() as start, public_directory("secrets") as directory:
        complete = configuration(
            it.realm, it.backend, certificate, directory, password="x", deadline=f"{DEADLINE:g}s", **kerberos
        )
        complete["pools"] = it.proxy.configuration["pools"]
        yield start(complete, env=it.realm.environment)


@pytest.mark.parametrize("how", OUTAGES)
def test_tickets_are_accepted_and_passwords_have_to_wait(maildrop: Site, home: Path, how: str) -> None:
    it = maildrop
    password = it.realm.passwords["alice"]
    with outage(it, how) as deaf:
        for mechanism in ("USER", "PLAIN"):
            started = time.monotonic()
            with refused(
                it.proxy, mechanism, "unavailable", "client_lost", outcome="unknown", errors=["cannot authenticate"]
            ):
                assert password_login(it.proxy, "alice", password, mechanism) == TRY_LATER
            assert time.monotonic() - started < PATIENCE
        status, output = curl(it, home)
        assert status == 0, output
        next_session_is_fine(it)
        with KpopClient(it.proxy.port("kpop")) as client:
            client.authenticate(it.realm.config, it.tickets["alice"], it.service)
            client.line()
            client.command("USER alice")
            assert client.command("PASS x") == IN
        if deaf is not None:
            assert deaf.datagrams > 0
            assert deaf.connections > 0
    wait_until(lambda: password_login(it.proxy, "alice", password) == IN, "the KDC is believed again", 60)


@pytest.mark.parametrize("how", OUTAGES)
def test_many_passwords_that_wait_hold_nobody_else_up(maildrop: Site, how: str) -> None:
    """More than there are threads. Meanwhile tickets open maildrops, and who is in is served."""
    it = maildrop
    password = it.realm.passwords["alice"]
    answers: list[tuple[bytes, float]] = []

    def try_password() -> None:
        started = time.monotonic()
        answer = password_login(it.proxy, "alice", password)
        answers.append((answer, time.monotonic() - started))

    with LineClient(it.proxy.port()) as inside:
        gss = at_choice(it, inside).gss
        assert inside.command(b64(gss.wrap(b"\x01\0\0\0", confidential=False))) == IN
        before = it.proxy.metrics()
        with outage(it, how):
            threads = [threading.Thread(target=try_password) for _ in range(25)]
            for thread in threads:
                thread.start()
            served = 0
            while any(thread.is_alive() for thread in threads) or served < 20:
                assert inside.command("NOOP").startswith(b"+OK")
                assert by_kpop(it.proxy, ApReqClient(it.tickets["alice"], it.service).ap_req) is None
                next_session_is_fine_while_others_wait(it)
                served += 1
            for thread in threads:
                thread.join()
        assert [answer for answer, _ in answers] == [TRY_LATER] * 25
        assert max(seconds for _, seconds in answers) < PATIENCE
        assert inside.command("QUIT").startswith(b"+OK")
    lag = lateness(before, it.proxy.metrics())
    print(f"event loop lag, {sum(lag.values()):g} samples by upper bound in seconds: {lag}")
    in_time = sum(count for bound, count in lag.items() if bound <= 0.05)
    assert in_time > sum(lag.values()) / 2
    wait_until(lambda: password_login(it.proxy, "alice", password) == IN, "the KDC is believed again", 60)


def test_what_is_too_much_is_told_at_once(maildrop: Site, server_certificate: CertificateFiles) -> None:
    """One thread hangs, one call waits for it; the third does not."""
    it = maildrop
    password = it.realm.passwords["alice"]
    with small_proxy(it, server_certificate, threads=1, queue=1) as proxy, outage(it, "deaf"):
        waiting = [threading.Thread(target=password_login, args=(proxy, "alice", password)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: proxy.metrics()['popproxy_executor_queue{pool="kdc"}'] == 1, "one call waits")
        assert password_login(proxy, "alice", password) == TRY_LATER
        assert all(thread.is_alive() for thread in waiting), "it was answered at once"
        for thread in waiting:
            thread.join(60)
        metrics = proxy.metrics()
        assert metrics['popproxy_executor_abandoned_total{pool="kdc"}'] == 1
        assert metrics['popproxy_executor_busy{pool="kdc"}'] == 1, "the thread still waits for the KDC"
        attempts = 'popproxy_auth_attempts_total{mechanism="USER",outcome="error",reason="unavailable"}'
        assert metrics[attempts] == 3
        next_session_is_fine(it, proxy)


def test_proxy_ends_while_the_kdc_is_awaited(maildrop: Site, server_certificate: CertificateFiles) -> None:
    it = maildrop
    with small_proxy(it, server_certificate) as proxy, outage(it, "deaf"), LineClient(proxy.port()) as client:
        client.line()
        client.send(f"USER alice\r\nPASS {it.realm.passwords['alice']}\r\n".encode())
        wait_until(lambda: proxy.metrics()['popproxy_executor_busy{pool="kdc"}'] == 1, "the KDC is asked")
        started = time.monotonic()
        proxy.stop()
        assert time.monotonic() - started < PATIENCE, "it does not wait for the library"


def next_session_is_fine_while_others_wait(it: Site) -> None:
    with LineClient(it.proxy.port()) as client:
        gss = at_choice(it, client).gss
        assert client.command(b64(gss.wrap(b"\x01\0\0\0", confidential=False))) == IN
        assert client.command("QUIT").startswith(b"+OK")


def lateness(before: Mapping[str, float], after: Mapping[str, float]) -> dict[float, float]:
    """How often the event loop was so late: counts by upper bound, between two scrapes."""
    pattern = re.compile(r'popproxy_event_loop_lag_seconds_bucket\{le="(.+)"\}')
    cumulative = {
        float(match[1]): value - before[name] for name, value in after.items() if (match := pattern.fullmatch(name))
    }
    counts, below = {}, 0.0
    for bound in sorted(cumulative):
        counts[bound] = cumulative[bound] - below
        below = cumulative[bound]
    return counts
