"""What SRV records mean for a pool."""

from __future__ import annotations

from random import Random

import pytest

from popproxy.backend.balancer import Balancer, Member, Rules
from popproxy.backend.discovery import MOST, srv_name, targets_of
from popproxy.backend.pool import Pool
from popproxy.config.model_pools import Pool as PoolConfig
from popproxy.errors import BackendError
from popproxy.net.dns import Service
from popproxy.types import Address


def service(host: str, priority: int = 0, weight: int = 0, port: int = 110) -> Service:
    return Service(priority, weight, Address(host, port))


def test_where_the_records_are() -> None:
    assert srv_name("example.com", "stls") == "_pop3._tcp.example.com"
    assert srv_name("example.com", "implicit") == "_pop3s._tcp.example.com"
    assert srv_name("_mail._tcp.example.com", "implicit") == "_mail._tcp.example.com"


def test_who_forges_records_needs_a_certificate_for_our_domain() -> None:
    hosts = ["pop1.example.com", "example.com", "pop.evil.test", "evilexample.com"]
    names = ["pop1.example.com", "example.com", "example.com", "example.com"]
    for domain in ("example.com", "_pop3s._tcp.example.com"):
        assert [one.name for one in targets_of(list(map(service, hosts)), domain, None)] == names
    found = targets_of(list(map(service, hosts)), "example.com", "mail.a.test")
    assert {one.name for one in found} == {"mail.a.test"}


def test_weights_and_doubles_and_too_many() -> None:
    found = targets_of([service("b", 2, 5), service("a", 1, 0), service("a", 9, 9), service("c", 2, 0)], "x", None)
    said = [(one.address.host, one.priority, one.weight) for one in found]
    assert said == [("a", 1, 0.01), ("b", 2, 5), ("c", 2, 0.01)]
    assert [one.weight for one in targets_of([service("a"), service("b")], "x", None)] == [1, 1]
    assert len(targets_of([service(f"s{number}") for number in range(100)], "x", None)) == MOST


def test_lower_priorities_come_first_and_among_equals_chance_by_weight() -> None:
    rules, weights = Rules("weights"), {"late": 100, "often": 3, "seldom": 1, "never": 0.01}
    members = [Member(label, rules, weight) for label, weight in weights.items()]
    members[0].priority = 1
    balancer = Balancer(members, rules, Random(1939).random)
    orders = [[one.label for one in balancer.choose("user", 0.0).well] for _ in range(500)]
    assert {order[-1] for order in orders} == {"late"}
    first = [order[0] for order in orders]
    assert 0.65 < first.count("often") / 500 < 0.85
    assert first.count("never") < 15


@pytest.mark.parametrize("shared", [False, True])
def test_who_was_moved_to_a_server_that_is_not_named_any_more_is_shown_no_other_maildrop(shared: bool) -> None:
    pool = Pool("main", PoolConfig.model_validate({"srv": "example.com", "tls": "implicit", "shared": shared}))
    there, gone = Address("new.example.com", 995), Address("old.example.com", 995)
    pool.offer(targets_of([service(there.host, port=995)], "example.com", None))
    assert [one.address for one in pool.candidates("alice", there, 0.0)] == [there]
    if shared:
        assert [one.address for one in pool.candidates("alice", gone, 0.0)] == [there]
    else:
        with pytest.raises(BackendError, match=r"old\.example\.com:995 is not among the servers"):
            pool.candidates("alice", gone, 0.0)
