"""Alerts and dashboards in config/: alerts fire when they should, and all ask for what popproxy really has."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse_text

from popproxy.observe.metric_families import families
from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.line_client import LineClient
from tests.peers.process import REPOSITORY, Process, free_port, public_directory, require, wait_until
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread

RULES = REPOSITORY / "config" / "prometheus" / "popproxy.rules.yml"
ALERT_TESTS = Path(__file__).parent / "alerts.yml"
DASHBOARDS = sorted((REPOSITORY / "config" / "grafana").glob("*.json"))
FROM_PROMETHEUS = {"up"}
"""What Prometheus knows itself."""
ONLY_IF_CONFIGURED = {
    "popproxy_keytab_readable",
    *(f"popproxy_{what}_duration_seconds_{part}" for what in ("kdc", "directory") for part in ("bucket", "count")),
    *("popproxy_ssh_connections", "popproxy_ssh_failures_total", "popproxy_auth_cache_total"),
    "popproxy_backend_tls_handshakes_total",
}
"""What a popproxy without Kerberos, directories, tunnels and TLS to servers has not: see real/test_dashboards."""
_NOT_METRICS = {
    *("sum", "min", "max", "by", "on", "and", "or", "rate", "increase", "changes", "time", "le", "histogram_quantile"),
}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Dashboard and panel, and what Prometheus would be asked."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                asked = target["expr"].replace("$__rate_interval", "5s").replace("$instance", ".*")
                assert "$" not in asked, asked
                yield f"{path.stem}: {panel['title']}", asked


def expressions() -> list[tuple[str, str]]:
    return [(rule["alert"], rule["expr"]) for rule in alerts()] + list(dashboard_expressions())


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every metric with the labels it is chosen by, label values being regular expressions."""
    without_groups = re.sub(r"\b(by|on) \(([^)]*)\)", " ", expression)
    for name, labels in re.findall(r"([a-z_]+)(?:\{([^}]*)\})?", re.sub(r'"[^"]*"(?![^{]*\})', "", without_groups)):
        if name not in _NOT_METRICS and (labels or not name.isalpha() or name == "up"):
            yield name, dict(re.findall(r'(\w+)=~?"([^"]*)"', labels))


@pytest.fixture(scope="module")
def scrape(server_certificate: CertificateFiles) -> dict[str, list[dict[str, str]]]:
    """The samples of a real popproxy: labels by name."""
    from tests.peers.proxy import proxies

    with proxies() as start:
        proxy = start(settings("127.0.0.1:9", server_certificate))
        parsed = list(parse_text(proxy.get("/metrics")[1]))
    return {sample.name: [s.labels for s in family.samples if s.name == sample.name]
            for family in parsed for sample in family.samples}  # fmt: skip


@pytest.mark.real
def test_rules_are_in_order_and_every_alert_fires_when_it_should() -> None:
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(ALERT_TESTS)]):
        ended = subprocess.run(
            [require("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "SUCCESS" in ended.stdout


def test_every_alert_has_a_test_and_says_what_to_do() -> None:
    tested = {test["name"] for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]}
    assert [rule["alert"] for rule in alerts() if rule["alert"] not in tested] == []
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "runbook"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["runbook"]) > 60


@pytest.mark.real
def test_every_expression_names_only_metrics_and_labels_that_popproxy_has(
    scrape: dict[str, list[dict[str, str]]],
) -> None:
    suffix = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    known = families(["pop3"], ["h:1"], ["d"])
    tables = {f"popproxy_{family.name}{end}": family for family in known for end in suffix[family.kind]}
    for where, expression in expressions():
        found = list(selectors(expression))
        assert found, f"{where}: no metric in {expression}"
        available = {"job", "instance", "le"}
        for name, labels in found:
            table = tables.get(name)
            assert (
                name in scrape
                or name in FROM_PROMETHEUS
                or (table and not any(table.labels.values()))
                or name in ONLY_IF_CONFIGURED
            ), f"{where}: popproxy has no {name}"
            there = set(table.labels) if table else {key for one in scrape.get(name, []) for key in one}
            assert labels.keys() <= there | {"job", "instance"}, f"{where}: {name} has {sorted(there)}"
            available |= there
            for label, value in labels.items():
                values = (table.labels.get(label) if table else None) or ()
                assert label in ("job", "instance") or not values or any(re.fullmatch(value, one) for one in values), (
                    f"{where}: {name} never has {label}={value!r}"
                )
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= available, f"{where}: by ({group})"


@pytest.mark.real
def test_a_misspelt_metric_or_label_is_noticed() -> None:
    assert dict(selectors('sum by (le) (rate(popproxy_foo_total{job="popproxy",a=~"b|c"}[5m])) / up{x="y"} > 0.1')) == {
        "popproxy_foo_total": {"job": "popproxy", "a": "b|c"},
        "up": {"x": "y"},
    }


@pytest.mark.real
def test_promtool_accepts_every_dashboards_expression(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": asked} for number, (_, asked) in enumerate(dashboard_expressions())]
    path = tmp_path / "dashboards.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    ended = subprocess.run(
        [require("promtool"), "check", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.real
def test_a_real_prometheus_fires_nothing_while_all_is_well(
    start_proxy: StartProxy, server_certificate: CertificateFiles
) -> None:
    with in_thread(ScriptedBackend()) as backend, public_directory("prometheus") as directory:
        proxy = start_proxy(settings(backend.address, server_certificate))
        with prometheus_server(directory, proxy.configuration["http"]["listen"]) as port:

            def logins_are_seen() -> bool:
                session(proxy)
                return bool(ask(port, 'increase(popproxy_auth_attempts_total{outcome="success"}[10s]) > 0'))

            wait_until(logins_are_seen, "Prometheus to see logins", 60)
            wait_until(lambda: all(rule["lastEvaluation"] > "0002" for rule in rules(port)), "every rule's turn", 60)
            # what is pending when a scrape came too late is not any more after the next one
            pending = 'ALERTS{alertname!~"PopproxyCertificateExpire.*"}'
            wait_until(lambda: ask(port, pending) == [], "no alert, not even a pending one")
            assert [rule["lastError"] for rule in rules(port) if rule.get("lastError")] == []


def rules(port: int) -> list[dict[str, Any]]:
    (group,) = get(port, "/api/v1/rules")["data"]["groups"]
    return list(group["rules"])


@contextlib.contextmanager
def prometheus_server(directory: Path, target: str) -> Iterator[int]:
    """A Prometheus that scrapes `target`, and its port."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "popproxy", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    command: list[str | Path] = [require("prometheus"), *options, f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = Process("prometheus", command, directory / "prometheus.log", directory)
    try:
        prometheus.wait_for(lambda: answers(port), "Prometheus to be ready", 60)
        yield port
    finally:
        prometheus.stop()


def session(proxy: Proxy) -> None:
    with LineClient(proxy.port()) as client:
        client.line()
        client.command("USER alice")
        assert client.command(f"PASS {canary()}").startswith(b"+OK")
        assert client.command("QUIT").startswith(b"+OK")


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(port: int, expression: str) -> list[Any]:
    result = get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))["data"]["result"]
    assert isinstance(result, list)
    return result


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.load(answer)
