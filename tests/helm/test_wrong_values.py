"""What the chart makes of values that are wrong: a sentence for each, and no objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm.rendering import helm, template

pytestmark = pytest.mark.real

IMPOSSIBLE = [
    ("image: {repository: ''}", "image.repository is empty; build the image"),
    (
        "config: {pools: {main: {servers: []}}}",
        "config.pools.main names no server; write servers: [oldmail.example.com]",
    ),
    ("config: {listeners: null}", "config.listeners is missing"),
    ("config: {listeners: [{name: pop3, listen: [':110']}]}", 'write ":1110" or another port above 1023'),
    ("config: {listeners: [{name: a, listen: ['127.0.0.1:1110']}]}", "where nobody outside its pod can connect"),
    (
        "config: {listeners: [{name: a, listen: [':1110']}, {name: b, listen: [':1110'], tls: implicit}]}",
        "a and b both listen on port 1110; give each its own",
    ),
    (
        "config: {listeners: [{name: a, listen: [':1110']}, {name: b, listen: [':2110']}]}",
        "the listeners a and b would both be port 110 of the Service; give one of them another in service.ports",
    ),
    ("service: {ports: {imap: 143}}", "service.ports has a port for imap, but the listeners are pop3, pop3s"),
    (
        "service: {type: ClusterIP, loadBalancerSourceRanges: [192.0.2.0/24]}",
        "service.loadBalancerSourceRanges is for type LoadBalancer, and service.type is ClusterIP",
    ),
    ("config: {http: {listen: '127.0.0.1:9110'}}", "where the kubelet cannot ask whether popproxy is well"),
    ("config: {http: {listen: null}}", "where the kubelet cannot ask whether popproxy is well"),
    ("config: {http: {listen: ':1110'}}", "config.http.listen and the listener pop3 have the same port 1110"),
    ("config: {process: {user: popproxy}}", "config.process.user is popproxy, but in its pod popproxy never is"),
    (
        "terminationGracePeriodSeconds: 60",
        "terminationGracePeriodSeconds is 60, but a pod needs more than 310 seconds to end: "
        "preStopSeconds (10) and config.timeouts.drain (300 s)",
    ),
    ("terminationGracePeriodSeconds: 100\nconfig: {timeouts: {drain: 1.5m}}", "needs more than 100 seconds"),
    ("secrets: {tls: ''}", "secrets.tls does not say which secret that is in; make one (kubectl create secret tls"),
    ("config: {users: {file: /etc/popproxy/users}}", "config names /etc/popproxy/users, where no volume is"),
    ("config: {users: {file: /etc/popproxy/config/users}}", "there is no users in files"),
    ("config: {audit: {file: /var/log/audit.jsonl}}", "config.audit.file is /var/log/audit.jsonl, which popproxy"),
    (
        "config: {audit: {journald: true}}",
        "config.audit.journald is on, but in a pod there is no journal; leave it out",
    ),
    ("config: {control: {socket: /run/popproxy.sock}}", "config.control.socket is /run/popproxy.sock"),
    (
        "files: {popproxy.yaml: 'listeners: []'}",
        "files has a popproxy.yaml, which the chart writes itself: from config",
    ),
    ("secrets: {config: popproxy}", "secrets.config would stand where popproxy.yaml is"),
    ("autoscaling: {enabled: true, minReplicas: 9, maxReplicas: 3}", "minReplicas is 9, more than maxReplicas, 3"),
    ("autoscaling: {enabled: true, cpu: null}", "autoscaling is on, but looks at nothing"),
    ("autoscaling: {enabled: true}\nresources: {requests: {cpu: null}}", "resources.requests.cpu is missing"),
    (
        "config: {kerberos: {keytab: k, principals: [p], replay_cache: /var/lib/popproxy/r, realms: [{realm: R}]}}",
        "there may be 3 replicas, and none would notice that a Kerberos ticket has been used at another; say in",
    ),
    (
        "replicas: 1\npodDisruptionBudget: {enabled: false}\n"
        "config: {kerberos: {keytab: k, principals: [p], replay_cache: /var/lib/popproxy, realms: [{realm: R}]}}",
        "config.kerberos.replay_cache must be a directory of its own, because nothing else may write there",
    ),
    (
        "config: {process: {state_directory: /var/lib/mail}}",
        "config.process.state_directory is /var/lib/mail, which",
    ),
    ("podDisruptionBudget: {minAvailable: 1}", "has both maxUnavailable and minAvailable"),
    ("podDisruptionBudget: {maxUnavailable: null, minAvailable: 3}", "minAvailable is 3 of 3 replicas"),
    ("podDisruptionBudget: {maxUnavailable: 0}", "so that no node could ever be emptied; write 1"),
]
"""Values over those of ci/minimal-values.yaml, each possible by itself, and the sentence that refuses them."""

WRONG = [
    ("config: {tls: {minimum: 1.2}}", "config.tls.minimum: Invalid type. Expected: string, given: number"),
    ("config: {pools: {main: {pipelining: false}}}", "config.pools.main.pipelining: Invalid type"),
    ("config: {pools: {main: {tls: starttls}}}", "config.pools.main.tls must be one of the following"),
    ("config: {pools: {Main Pool: {servers: [a]}}}", "Additional property Main Pool is not allowed"),
    ("config: {pools: {main: {servers: [two hosts]}}}", "config.pools.main.servers.0: Does not match pattern"),
    ("config: {timeouts: {drain: soon}}", "config.timeouts.drain: Does not match pattern"),
    ("config: {limits: {connections: 0}}", "config.limits.connections: Must be greater than or equal to 1"),
    ("config: {limits: {idle: 10m}}", "config.limits: Additional property idle is not allowed"),
    ("config: {kerberos: {keytab: k}}", "config.kerberos: principals is required"),
    ("config: {policy: [{mechanisms: [APOP], until: soon}]}", "config.policy.0.until"),
    ("replicas: '3'", "replicas: Invalid type. Expected: integer, given: string"),
    ("replica: 3", "Additional property replica is not allowed"),
    ("image: {digest: 'sha256:abc'}", "image.digest: Does not match pattern"),
    ("service: {type: loadbalancer}", "service.type must be one of the following"),
]
"""The same for what the schema refuses."""


def test_what_cannot_work_together_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for values, sentence in IMPOSSIBLE:
        ended = template(tmp_path / "values.yaml", values)
        assert ended.returncode != 0, values
        assert sentence in ended.stderr, ended.stderr
        assert ended.stderr.count("\n  * ") == 1, ended.stderr


def test_everything_that_cannot_work_is_told_at_once() -> None:
    ended = helm("template")
    assert ended.stderr.count("\n  * ") == 3
    assert "config.pools is missing; say which POP3 servers are behind" in ended.stderr
    ended = helm("lint", "--strict")
    assert ended.returncode == 0, ended.stdout  # a chart is not wrong because it needs values


def test_values_that_are_wrong_by_themselves_are_refused_by_the_schema(tmp_path: Path) -> None:
    for values, sentence in WRONG:
        ended = template(tmp_path / "values.yaml", values)
        assert ended.returncode != 0, values
        assert sentence in ended.stderr, ended.stderr
