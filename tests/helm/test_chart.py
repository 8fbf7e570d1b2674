"""The chart, rendered by helm 3.10 for every values file in ci/, and what it makes of wrong values."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from popproxy.config.loader import load_bytes
from tests.helm.rendering import CHART, EXAMPLES, KERBEROS, MINIMAL, Object, helm, notes, only, rendered, template
from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.real

VERSIONS = ("1.25.0", "1.31.0", "1.36.0")
"""Of Kubernetes: the oldest that the chart admits, one in between, a new one."""
CUSTOM = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, which kubernetes-validate does not know."""
PROXY = CHART / "ci/proxy-protocol-values.yaml"
ONE_NODE = CHART / "ci/one-node-values.yaml"
each_example = pytest.mark.parametrize("values", EXAMPLES, ids=lambda path: path.stem)


def pod(objects: tuple[Object, ...]) -> Object:
    found: Object = only(objects, "Deployment")["spec"]["template"]
    return found


def configuration(objects: tuple[Object, ...]) -> Object:
    found: Object = only(objects, "ConfigMap", "popproxy")["data"]
    return found


@each_example
def test_examples_are_good_charts_and_good_kubernetes(values: Path) -> None:
    ended = helm("lint", "--strict", "-f", values)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for version in VERSIONS:
        for document in rendered(values, version):
            if document["kind"] not in CUSTOM:
                kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_object_is_noticed() -> None:
    service = only(rendered(MINIMAL), "Service")
    wrong = {**service, "spec": {**service["spec"], "externalTrafficPolcy": "Local"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@each_example
def test_popproxy_accepts_the_configuration_that_the_pods_get(values: Path) -> None:
    text = configuration(rendered(values))["popproxy.yaml"]
    loaded = load_bytes(text.encode(), Path("/etc/popproxy/config/popproxy.yaml"))
    assert loaded.warnings == []
    wanted = yaml.safe_load(values.read_text())["config"]
    assert [*loaded.config.pools] == sorted(wanted["pools"])


@each_example
def test_nothing_runs_with_more_rights_than_it_needs(values: Path) -> None:
    objects = rendered(values)
    for spec in (pod(objects)["spec"], only(objects, "Pod", "login")["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "privileged": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    for account in (one for one in objects if one["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@each_example
def test_ports_mounts_and_selectors_fit_together(values: Path) -> None:
    objects = rendered(values)
    template = pod(objects)
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    loaded = load_bytes(configuration(objects)["popproxy.yaml"].encode(), Path("/etc/popproxy.yaml")).config
    assert sorted(ports.values()) == sorted(
        [listener.listen[0].port for listener in loaded.listeners]
        + [loaded.http.listen.port if loaded.http.listen else 0]
    )
    assert {port["targetPort"] for port in only(objects, "Service")["spec"]["ports"]} == ports.keys() - {"http"}
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[name]["httpGet"] == {"path": path, "port": "http"}
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    labels = template["metadata"]["labels"].items()
    for document in objects:
        spec = document.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        chosen = selector.get("matchLabels", selector)
        assert chosen.items() <= labels, document["kind"]
    for spread in template["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels


def test_a_pod_gets_the_time_that_its_sessions_may_take() -> None:
    for values, pause, drain in ((MINIMAL, 10, 300), (PROXY, 10, 90)):
        spec = pod(rendered(values))["spec"]
        assert spec["terminationGracePeriodSeconds"] == pause + drain + 15
        (container,) = spec["containers"]
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(pause)]
    assert pod(rendered(ONE_NODE))["spec"]["terminationGracePeriodSeconds"] == 600
    assert only(rendered(MINIMAL), "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_secrets_become_files_for_popproxys_group_alone() -> None:
    spec = pod(rendered(KERBEROS))["spec"]
    (container,) = spec["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    assert {volume["secretName"] for volume in secrets.values()} == {
        *("popproxy-tls", "pop-keytab", "popproxy-vault", "popproxy-jump", "popproxy-redis", "popproxy-audit"),
    }
    assert {volume["defaultMode"] for volume in secrets.values()} == {0o440}
    assert mounts["/etc/popproxy/keytab"] == {
        "name": "secret-keytab", "mountPath": "/etc/popproxy/keytab", "readOnly": True,
    }  # fmt: skip
    assert "readOnly" not in mounts["/var/lib/popproxy"]
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["KRB5_CONFIG"] == "/etc/popproxy/config/krb5.conf"
    data = configuration(rendered(KERBEROS))
    assert "kdc = kdc.example.com" in data["krb5.conf"]
    assert data["principals.map"] == "mailadmin@EXAMPLE.COM postmaster@example.com\n"


def test_another_configuration_means_other_pods(tmp_path: Path) -> None:
    before = pod(rendered(MINIMAL))["metadata"]["annotations"]["checksum/config"]
    for number, changed in enumerate(("config: {limits: {connections: 9}}", "files: {moved: a new}", "{}")):
        ended = template(tmp_path / f"{number}.yaml", changed)
        objects = tuple(document for document in yaml.safe_load_all(ended.stdout) if document)
        after = pod(objects)["metadata"]["annotations"]["checksum/config"]
        assert (after != before) == (changed != "{}")


def test_the_network_is_open_where_the_configuration_needs_it_and_nowhere_else() -> None:
    policy = only(rendered(KERBEROS), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    egress = [
        (sorted((port["protocol"], port["port"]) for port in rule["ports"]), json.dumps(rule.get("to", "anywhere")))
        for rule in policy["egress"]
    ]
    names = {"kubernetes.io/metadata.name": "kube-system"}
    assert egress == [
        ([("TCP", 53), ("UDP", 53)], json.dumps([{"namespaceSelector": {"matchLabels": names}}])),
        ([("TCP", 995), ("TCP", 2222)], '[{"ipBlock": {"cidr": "198.51.100.0/24"}}]'),
        ([("TCP", 88), ("UDP", 88)], '[{"ipBlock": {"cidr": "198.51.100.88/32"}}]'),
        ([("TCP", 6379), ("TCP", 26379)], '[{"podSelector": {"matchLabels": {"app": "redis"}}}]'),
        ([("TCP", 389), ("TCP", 3636)], '[{"ipBlock": {"cidr": "198.51.100.0/24"}}]'),
        ([("TCP", 6514)], '[{"ipBlock": {"cidr": "198.51.100.14/32"}}]'),
    ]  # fmt: skip
    clients, monitoring = policy["ingress"]
    assert {port["port"] for port in clients["ports"]} == {"pop3", "pop3s", "kpop"}
    test_pod = only(rendered(KERBEROS), "Pod", "login")["metadata"]["labels"]
    assert {"ipBlock": {"cidr": "192.0.2.0/24"}} in clients["from"]
    assert clients["from"][-1]["podSelector"]["matchLabels"].items() <= test_pod.items()
    assert [port["port"] for port in monitoring["ports"]] == ["http"]


def test_the_network_knows_the_ports_of_records_proxies_and_name_servers(tmp_path: Path) -> None:
    pool = "{srv: example.com, tls: implicit}, far: {servers: ['a:7110'], socks: {server: s}}"
    values = f"config: {{names: {{servers: ['10.0.0.2:5353']}}, pools: {{new: {pool}}}, routing: {{default: main}}}}"
    ended = template(tmp_path / "values.yaml", values)
    assert ended.returncode == 0, ended.stderr
    objects = tuple(document for document in yaml.safe_load_all(ended.stdout) if document)
    names, backends = only(objects, "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in names["ports"]] == [53, 53, 5353, 5353]
    assert [port["port"] for port in backends["ports"]] == [1080, 110, 995]


def test_clients_keep_their_addresses() -> None:
    assert only(rendered(MINIMAL), "Service")["spec"]["externalTrafficPolicy"] == "Local"
    service = only(rendered(PROXY), "Service")
    assert service["metadata"]["annotations"]["service.beta.kubernetes.io/aws-load-balancer-proxy-protocol"] == "*"
    assert [(port["name"], port["port"]) for port in service["spec"]["ports"]] == [("pop3s", 995), ("inside", 8110)]


def test_scaling_counts_sessions_and_takes_pods_away_slowly() -> None:
    objects = rendered(PROXY)
    spec = only(objects, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in only(objects, "Deployment")["spec"]
    assert spec["scaleTargetRef"]["name"] == only(objects, "Deployment")["metadata"]["name"]
    assert [metric["pods"]["target"]["averageValue"] for metric in spec["metrics"]] == ["2500"]
    assert spec["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 600}]
    assert only(objects, "PodDisruptionBudget")["spec"]["minAvailable"] == "50%"


def test_alerts_and_dashboards_are_those_of_the_repository() -> None:
    objects = rendered(KERBEROS)
    rules = yaml.safe_load((REPOSITORY / "config/prometheus/popproxy.rules.yml").read_text())
    assert only(objects, "PrometheusRule")["spec"] == rules
    dashboards = only(objects, "ConfigMap", "dashboards")
    assert {name: json.loads(text) for name, text in dashboards["data"].items()} == {
        f"popproxy-{path.name}": json.loads(path.read_text()) for path in (REPOSITORY / "config/grafana").glob("*.json")
    }
    (endpoint,) = only(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": "popproxy"} in endpoint["relabelings"]


def test_packed_it_is_the_same_chart(tmp_path: Path) -> None:
    ended = helm("package", "--destination", tmp_path)
    assert ended.returncode == 0, ended.stderr
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as packed:
        assert all(member.isfile() for member in packed.getmembers())
    ended = helm("template", "--namespace", "post", "--kube-version", "1.31.0", "-f", KERBEROS, chart=archive)
    assert tuple(document for document in yaml.safe_load_all(ended.stdout) if document) == rendered(KERBEROS)


def test_the_notes_tell_the_next_three_commands_and_what_to_beware_of(tmp_path: Path) -> None:
    text = notes(tmp_path / "one", MINIMAL)
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ") and " -n " in line] == [
        *("kubectl", "helm", "kubectl"),
    ]
    assert "pop3s        port 995" in text
    assert "9110:9110   # then http://127.0.0.1:9110/status" in text
    assert "test.secret" in text
    assert "WARNING: without config.shared_state each pod counts for itself" in text
    assert "WARNING" not in notes(tmp_path / "three", KERBEROS)
    assert "WARNING: with service.externalTrafficPolicy Cluster the listener inside" in notes(tmp_path / "two", PROXY)


def test_files_of_the_chart_are_links_to_their_one_source() -> None:
    links = {path.name: path.resolve() for path in (CHART / "files").iterdir() if path.is_symlink()}
    assert links == {
        "grafana": REPOSITORY / "config/grafana",
        "popproxy.rules.yml": REPOSITORY / "config/prometheus/popproxy.rules.yml",
    }
