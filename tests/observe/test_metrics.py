"""Metrics start at 0, keep to their closed label sets, and come out as Prometheus wants them."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from popproxy.admin.commands import Commands
from popproxy.admin.sessions import add_sessions
from popproxy.observe import metric_merge
from popproxy.observe.metric_exposition import Exposition
from popproxy.observe.metric_families import VERBS, families
from popproxy.observe.metric_merge import SEPARATOR, Snapshot, fitting, merged, settle
from popproxy.observe.metric_snapshot import MergedMetrics, snapshot
from popproxy.observe.metric_values import Histogram, Series
from popproxy.observe.metrics import Metrics
from popproxy.types import AuthFailure, CloseReason, Mechanism

LISTENERS = ["pop3", "pop3s"]
BACKENDS = ["10.0.0.5:110", 'od"d\\name\n:995']
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def openmetrics_families(text: bytes) -> list[Metric]:
    return list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]


@dataclass
class Pool:
    limit: int = 4
    queue_limit: int = 100
    busy: int = 1
    queued: int = 2
    abandoned: int = 3


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(LISTENERS, BACKENDS)


def samples(metrics: Metrics) -> Iterator[Sample]:
    for family in parse_text(metrics.render("")[0].decode()):
        yield from family.samples


def value(metrics: Metrics, name: str, **labels: str) -> float:
    (found,) = [s.value for s in samples(metrics) if s.name == f"popproxy_{name}" and s.labels == labels]
    return found


def series(metrics: Metrics) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    own = (s for s in samples(metrics) if s.name.startswith("popproxy_"))
    return {(s.name, frozenset(s.labels.items())) for s in own}


def use_everything(metrics: Metrics) -> None:
    metrics.watch_executor("hash", Pool())
    metrics.tls_certificate_expiry["pop3"] = 1.9e9
    metrics.event_loop_lag.observe(0.003)
    metrics.session_duration.observe("pop3", 12.0)
    metrics.auth_attempts[(Mechanism.PLAIN, "success", AuthFailure.NONE)] += 1
    metrics.sessions_ended[("pop3", CloseReason.LOGOUT)] += 1
    metrics.backend_errors[(BACKENDS[1], "login", "eof")] += 1
    metrics.bytes_to_client += 10_000_000_000


def test_every_label_set_is_there_at_zero(metrics: Metrics) -> None:
    exceptions = {"popproxy_audit_healthy", "popproxy_build_info"}
    exceptions |= {"popproxy_shared_state_up", "popproxy_shared_state_members"}
    every = list(samples(metrics))
    present = [s for s in every if s.name.startswith("popproxy_") and s.name not in exceptions]
    assert {s.value for s in present} == {0.0}
    for family in families(LISTENERS, BACKENDS):
        if family.sparse or family.attribute.startswith("executor."):
            continue
        name = "popproxy_" + family.name + {"counter": "_total", "gauge": "", "histogram": "_count"}[family.kind]
        found = [s.labels for s in every if s.name == name]
        expected = 1
        for values in family.labels.values():
            expected *= len(values)
        assert len(found) == expected, family.name
        assert all(labels.keys() == family.labels.keys() for labels in found)


def test_a_proxy_of_usual_size_has_few_series(metrics: Metrics) -> None:
    """Two listeners and two servers; each series costs Prometheus memory, and every scrape time."""
    use_everything(metrics)
    assert len(series(metrics)) < 500


def test_counts_come_out_under_their_labels(metrics: Metrics) -> None:
    use_everything(metrics)
    assert value(metrics, "auth_attempts_total", mechanism="PLAIN", outcome="success", reason="none") == 1
    assert value(metrics, "sessions_ended_total", listener="pop3", reason="logout") == 1
    assert value(metrics, "backend_errors_total", backend=BACKENDS[1], stage="login", reason="eof") == 1
    assert value(metrics, "relay_bytes_total", direction="to_client") == 10_000_000_000
    assert value(metrics, "tls_certificate_expiry_timestamp_seconds", listener="pop3") == 1.9e9
    assert value(metrics, "executor_threads", pool="hash") == 4
    assert value(metrics, "executor_queue_limit", pool="hash") == 100
    assert value(metrics, "executor_busy", pool="hash") == 1
    assert value(metrics, "executor_queue", pool="hash") == 2
    assert value(metrics, "executor_abandoned_total", pool="hash") == 3


def test_unknown_label_values_never_make_a_series(metrics: Metrics) -> None:
    before = series(metrics)
    for number in range(1000):
        metrics.commands[(f"X{number}", "ok")] += 1
        metrics.backend_errors[(BACKENDS[0], "connect", f"reason {number}")] += 1
        metrics.response_codes[f"X-{number}"] += 1
        metrics.connections[f"user{number}"] += 1
        metrics.session_duration.observe(f"user{number}", 1.0)
    assert series(metrics) == before
    assert value(metrics, "commands_total", verb="OTHER", outcome="ok") == 1000
    assert value(metrics, "backend_errors_total", backend=BACKENDS[0], stage="connect", reason="other") == 1000
    assert value(metrics, "response_codes_total", code="other") == 1000
    assert value(metrics, "metrics_strays_total") == 1000
    assert len(metrics.commands) <= 2 * len(VERBS) + 1
    assert len(metrics.connections) <= len(LISTENERS) + 1


@given(st.lists(st.sampled_from(["a", "b", "x", "y", "other"])))
def test_a_series_counts_every_increment_and_never_goes_back(keys: list[str]) -> None:
    counts: Series[str] = Series(("a", "b", "other"))
    previous = counts.settled()[0]
    for key in keys:
        counts[key] += 1
        values, strays = counts.settled()
        assert strays == 0
        assert values.keys() == {"a", "b", "other"}
        assert all(values[name] >= previous[name] for name in values)
        previous = values
    assert sum(previous.values()) == len(keys)
    assert previous["a"] == keys.count("a")


def test_a_key_with_the_wrong_number_of_labels_is_a_stray() -> None:
    counts: Series[tuple[str, ...]] = Series(("a", "other"), ("b", "other"))
    counts[("a",)] += 1
    counts[("x", "y")] += 1
    values, strays = counts.settled()
    assert values[("other", "other")] == 1
    assert strays == 1


@given(st.lists(st.floats(min_value=0, max_value=100)))
def test_a_histogram_agrees_with_a_naive_count(durations: list[float]) -> None:
    histogram = Histogram((0.1, 1.0, 10.0))
    for duration in durations:
        histogram.observe(duration)
    expected = [sum(d <= bound for d in durations) for bound in (0.1, 1.0, 10.0, float("inf"))]
    assert list(accumulate(histogram.counts()[0])) == expected
    assert histogram.sum == pytest.approx(sum(durations))


def test_both_formats_are_parsed_by_their_parsers(metrics: Metrics) -> None:
    use_everything(metrics)
    text, text_type = metrics.render("text/plain")
    open_text, open_type = metrics.render(OPENMETRICS)
    assert text_type.startswith("text/plain; version=0.0.4")
    assert open_type.startswith("application/openmetrics-text; version=1.0.0")
    from_text = {s.name: s.value for f in parse_text(text.decode()) for s in f.samples if "popproxy" in s.name}
    from_open = {s.name: s.value for f in openmetrics_families(open_text) for s in f.samples if "popproxy" in s.name}
    assert from_text == from_open
    assert "popproxy_build_info" in from_text


def test_the_process_is_among_the_metrics(metrics: Metrics) -> None:
    names = {s.name for s in samples(metrics)}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= names


def test_promtool_has_no_complaint(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.fail("promtool is missing: run `make setup`, or `apt-get install prometheus`")
    use_everything(metrics)
    result = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.render("")[0], capture_output=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_scrape_in_another_thread_loses_no_count(metrics: Metrics) -> None:
    done = threading.Event()
    scraped: list[float] = []

    def scrape() -> None:
        while not done.is_set():
            scraped.append(value(metrics, "messages_total", verb="RETR"))

    thread = threading.Thread(target=scrape)
    thread.start()
    counted = 0
    while counted < 20_000 or len(scraped) < 5:
        counted += 1
        metrics.messages["RETR"] += 1
        metrics.commands[(str(counted), "ok")] += 1
    done.set()
    thread.join()
    assert scraped == sorted(scraped)
    assert value(metrics, "messages_total", verb="RETR") == counted
    assert value(metrics, "commands_total", verb="OTHER", outcome="ok") == counted


# ---- of several processes ----


def test_all_that_a_process_counts_fits_and_nothing_that_strangers_make_up() -> None:
    metrics = Metrics(["pop3"], ["10.0.0.5:110"], ["corp"], ["tunnel"])
    use_everything(metrics)
    metrics.expect_backend("found.example.com:995")
    for outcome in ("hit", "miss"):
        metrics.auth_cache["corp", outcome] += 1
    metrics.backend_sessions["found.example.com:995"] += 1
    metrics.watch_pools(lambda: {("main", "10.0.0.5:110", "up"): 1.0}, lambda: {"main": 3})
    told = snapshot(metrics)
    assert fitting(told) == told
    bad: Snapshot = {
        "counter": {
            "connections": {"pop3": 1, "x" * 256: 1, "a\nb": 1, "": 1}, "made_up": {"": 1},
            "auth_attempts": {SEPARATOR.join(key): 1 for key in (("USER", "success"), ("USER", "failure", "made up"))},
        },
        "min": {"connections": {"pop3": 1}}, "sum": {"audit_pending_bytes": {"file": 7, "elsewhere": 8}},
    }  # fmt: skip
    assert fitting(bad) == {
        "counter": {"connections": {"pop3": 1}, "auth_attempts": {}}, "min": {},
        "sum": {"audit_pending_bytes": {"file": 7}},
    }  # fmt: skip


def test_what_is_remembered_of_processes_that_are_gone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_merge, "SERIES", 100)
    past: Snapshot = {}
    for process in range(50):
        settle(past, {"counter": {"connections": {"pop3": 1, **{f"{process}-{n}": 1 for n in range(50)}}}})
    assert past["counter"]["connections"]["pop3"] == 50
    assert len(past["counter"]["connections"]) < 150


async def test_stats_go_on_after_a_reload_that_has_taken_a_listener_away() -> None:
    before, now = Metrics(["old", "pop3"], BACKENDS), Metrics(["pop3"], BACKENDS)
    before.connections["old"] += 1
    before.audit_last_checkpoint = now.audit_last_checkpoint = 1_700_000_000.0
    living = [snapshot(before), snapshot(now)]

    async def counts() -> Exposition:
        return MergedMetrics(now, merged({}, living, living))

    commands = Commands()
    add_sessions(commands, [], counts, str)
    stats: Any = await commands.execute("stats", {})
    assert [one["name"] for one in stats["listeners"]] == ["pop3"]
    assert stats["connections"] == 1, "it has been there"
    assert (await counts()).values("audit_last_checkpoint") == {(): 1_700_000_000.0}
