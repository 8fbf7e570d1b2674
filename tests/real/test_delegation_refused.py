"""Tickets for servers that there are none of: what the KDC does not allow, whom it does not know, when it is silent.

The user has proved who it is, so none of this is ever shown as a wrong password.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.real.delegation_rig import (
    FORBIDDEN,
    Grounds,
    curl,
    failure,
    let_in_by_backend,
    login_record,
    refusal,
)
from tests.real.kerberos_rig import give_to_service


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("kerberos-delegated", ()),
        ("kerberos-delegated", ("--delegation", "always")),
        ("kerberos-transition", ()),
    ],
)
def test_server_that_is_not_on_the_list_is_refused(
    ground: Grounds, home: Path, strategy: str, options: tuple[str, ...]
) -> None:
    """Also where the client has forwarded a ticket that could go anywhere."""
    it = ground.site([strategy, "kerberos-service"], pool={"kerberos": {"principal": FORBIDDEN, "layers": ["none"]}})
    assert refusal(it, home, *options).startswith("-ERR [SYS/PERM] no way to log in")
    record = failure(it)
    assert record["event.reason"] == "not_allowed"
    assert record["popproxy.strategy"] == strategy
    assert it.proxy.audit("auth")[-1]["event.outcome"] == "success", "the user has proved who it is"
    log = it.proxy.log()
    assert f"does not let {it.service} act for users at {FORBIDDEN}@{it.realm.name}" in log
    assert "krbAllowedToDelegateTo" in log
    metrics = it.proxy.metrics()
    assert metrics[f'popproxy_backend_tickets_total{{outcome="not_allowed",strategy="{strategy}"}}'] == 1
    assert metrics[f'popproxy_backend_up{{backend="127.0.0.1:{it.backend.port}"}}'] == 0, "never used"
    assert metrics["popproxy_metrics_strays_total"] == 0


def test_what_the_client_has_forwarded_needs_no_list(ground: Grounds, home: Path) -> None:
    it = ground.site(["kerberos-forwarded"], pool={"kerberos": {"principal": FORBIDDEN, "layers": ["none"]}})
    status, output = curl(it, home, "--delegation", "always")
    assert status == 0, output
    assert refusal(it, home).startswith("-ERR [SYS/PERM] no way to log in"), "nothing was forwarded"


def test_server_that_the_kdc_does_not_know(ground: Grounds, home: Path) -> None:
    it = ground.site(["kerberos-delegated"], pool={"kerberos": {"principal": "pop/nowhere.test", "layers": ["none"]}})
    assert refusal(it, home).startswith("-ERR [SYS/PERM]")
    assert failure(it)["event.reason"] == "no_target"
    assert "the KDC knows no pop/nowhere.test@" in it.proxy.log()


@pytest.mark.parametrize("strategy", ["kerberos-delegated", "kerberos-transition"])
def test_user_that_must_not_be_delegated(ground: Grounds, home: Path, strategy: str) -> None:
    """Bob is refused, or taken on by the next way in the list; alice is not in his way."""
    it = ground.site([strategy])
    assert refusal(it, home, user="bob").startswith("-ERR [SYS/PERM] no way to log in")
    assert failure(it)["event.reason"] == "not_delegatable"
    assert curl(it, home)[0] == 0
    it = ground.site([strategy, "kerberos-service"])
    assert curl(it, home, user="bob")[0] == 0
    assert login_record(it)["popproxy.strategy"] == "kerberos-service"
    let_in_by_backend(it, "user=<bob>, method=GSSAPI")
    assert "a login is passed over" in it.proxy.log()


def test_without_the_right_to_change_protocols_only_tickets_count(ground: Grounds, home: Path) -> None:
    ground.realm.allow_transition("pop/localhost", allow=False)
    try:
        it = ground.site(["kerberos-transition"])
        assert refusal(it, home).startswith("-ERR [SYS/PERM]")
        assert failure(it)["event.reason"] == "not_delegatable"
        assert "+ok_to_auth_as_delegate" in it.proxy.log()
        it = ground.site(["kerberos-transition", "kerberos-delegated"])
        assert curl(it, home)[0] == 0
        assert login_record(it)["popproxy.strategy"] == "kerberos-delegated"
    finally:
        ground.realm.allow_transition("pop/localhost")


def test_own_key_that_is_not_the_kdcs(ground: Grounds, home: Path) -> None:
    """Tickets are still accepted, made with the old key, which is in the keytab."""
    realm = ground.realm
    realm.service("pop/rotated.test")
    keytab = realm.keytab("pop/localhost", "pop/rotated.test")
    realm.rotate("pop/rotated.test")
    give_to_service(keytab)
    it = ground.site(
        ["kerberos-service"], kerberos={"client_principal": f"pop/rotated.test@{realm.name}"}, keytab=keytab
    )
    assert refusal(it, home).startswith("-ERR [SYS/PERM]")
    assert failure(it)["event.reason"] == "own_credential"
    assert "the keytab has another key than the KDC" in it.proxy.log()


def test_server_that_does_not_take_the_proxys_own_ticket(ground: Grounds, home: Path) -> None:
    """Never the user's fault: it has proved who it is."""
    realm = ground.realm
    realm.service("pop/stranger.test")
    keytab = realm.keytab("pop/localhost", "pop/stranger.test")
    give_to_service(keytab)
    it = ground.site(
        ["kerberos-service"], kerberos={"client_principal": f"pop/stranger.test@{realm.name}"}, keytab=keytab
    )
    assert refusal(it, home) == "-ERR [SYS/PERM] your mail server refuses the proxy, tell your administrator"
    record = failure(it)
    assert record["event.reason"] == "proxy_credential"
    assert record["popproxy.strategy"] == "kerberos-service"


# ---- KDC trouble ----


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_without_kdc_users_have_to_wait_unless_their_ticket_is_kept(ground: Grounds, home: Path, how: str) -> None:
    it = ground.site(["kerberos-delegated"], kerberos={"deadline": "3s"})
    other = ground.site(["kerberos-delegated"], kerberos={"deadline": "3s", "delegation_cache": "0s"})
    for site in (it, other):
        assert curl(site, home)[0] == 0
    with contextlib.ExitStack() as stack:
        if how == "stopped":
            it.realm.stop()
            stack.callback(it.realm.start)
        else:
            stack.enter_context(it.realm.silent())
        started = time.monotonic()
        assert refusal(other, home) == "-ERR [SYS/TEMP] temporary problem, try again later"
        assert time.monotonic() - started < 20, "the deadline is 3 s"
        assert failure(other)["event.reason"] == ("kdc" if how == "stopped" else "unavailable")
        status, output = curl(it, home)
        assert status == 0, output
    other.realm.kvno(other.tickets["alice"], other.service)  # the KDC is back


def test_the_kdc_is_asked_once_for_many_logins(ground: Grounds, home: Path) -> None:
    it = ground.site(["kerberos-transition"])
    log = it.realm.directory / "kdc.log"

    def asked() -> int:
        return log.read_text().count("TGS_REQ")

    assert curl(it, home)[0] == 0
    before = asked()
    for _ in range(3):
        assert curl(it, home)[0] == 0
    assert asked() == before, log.read_text()[-2000:]
    it = ground.site(["kerberos-transition"], kerberos={"delegation_cache": "0s"})
    before = asked()
    for _ in range(2):
        assert curl(it, home)[0] == 0
    assert asked() - before == 4, "S4U2Self and S4U2Proxy, each time"
