"""The container: its Dockerfile is linted, and its program runs as the chart runs it, on this machine's Python.

All steps on a clean Debian are `make container`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.helm.container import DOCKERFILE, REPLAY_CACHE, Container, context, copy_context, stages, try_out
from tests.helm.rendering import KERBEROS, MINIMAL, only, rendered
from tests.peers.process import REPOSITORY, public_directory

HADOLINT = REPOSITORY / ".venv/bin/hadolint"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.long
def test_hadolint_finds_nothing_in_it_and_something_in_a_worse_one() -> None:
    text = DOCKERFILE.read_text()
    ended = lint(text)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "DL3015" in lint(text.replace("--no-install-recommends ", "")).stdout
    assert "DL3002" in lint(text.replace("USER 10110:10110", "USER root")).stdout


def test_it_has_two_stages_and_every_extra() -> None:
    build, image = stages(DOCKERFILE.read_text())
    extras = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]) - {
        "dev"
    }
    (install,) = [rest for word, rest in build.steps if word == "RUN" and " install " in rest and "pip" in rest]
    assert set(install.partition("'.[")[2].partition("]")[0].split(",")) == extras
    assert "gcc" not in " ".join(rest for _, rest in image.steps)
    assert ("COPY", "--from=build /opt/popproxy /opt/popproxy") in image.steps
    assert image.program() == ["popproxy", "serve"]
    assert image.health() == ["popproxy", "health"]


def test_only_what_is_built_gets_into_the_context() -> None:
    outside = [path for path in context() if path.parts[0] not in {"popproxy", "config"}]
    assert sorted(map(str, outside)) == ["LICENSE", "README.md", "pyproject.toml"]
    assert {path.parts[1] for path in context() if path.parts[0] == "config"} == {"man"}


@pytest.mark.real
def test_the_chart_and_the_image_agree_about_the_user_and_the_ports() -> None:
    image = stages(DOCKERFILE.read_text())[-1]
    spec = only(rendered(MINIMAL), "Deployment")["spec"]["template"]["spec"]
    assert image.last("USER") == "{runAsUser}:{runAsGroup}".format(**spec["securityContext"])
    (container,) = spec["containers"]
    (before,) = only(rendered(KERBEROS), "Deployment")["spec"]["template"]["spec"]["initContainers"]
    assert before["command"] == REPLAY_CACHE
    assert container["args"] == json.loads(image.last("CMD"))
    assert image.last("EXPOSE").split() == [str(port["containerPort"]) for port in container["ports"]]


@pytest.mark.real
def test_it_runs_read_only_without_any_right() -> None:
    """The wheel from the build context, on a root directory that has nothing but the machine's /usr and itself."""
    listeners = [{"name": "pop3", "port": 1110, "tls": "stls"}, {"name": "pop3s", "port": 1995, "tls": "implicit"}]
    with public_directory("container") as directory:
        source, root = directory / "src", directory / "root"
        for word, rest in stages(DOCKERFILE.read_text())[0].steps:
            *sources, target = rest.split()
            if word == "COPY":
                copy_context(source / target, sources)
        for name in ("dev", "etc/popproxy", "opt/packages", "proc", "run/popproxy", "tmp", "usr", "var/lib/popproxy"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / name).symlink_to(f"usr/{name}")
        shutil.copy("/etc/ld.so.cache", root / "etc/ld.so.cache")
        home = root / "opt/popproxy"
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        commands: list[list[str | Path]] = [
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", directory, source],
            ["/usr/bin/python3", "-m", "venv", "--without-pip", home],
            [*pip, "--python", home, "install", "--no-deps", "--no-index", "--find-links", directory, "popproxy"],
        ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        program = home / "bin/popproxy"
        program.write_text(program.read_text().replace(str(root), ""))
        (packages,) = (REPOSITORY / ".venv/lib").glob("python3*/site-packages")
        (own,) = home.glob("lib/python3*/site-packages")
        (own / "packages.pth").write_text("/opt/packages\n")
        objects = rendered(MINIMAL)
        binds = [(Path("/usr"), "/usr"), (packages, "/opt/packages")]
        text = only(objects, "ConfigMap", "popproxy")["data"]["popproxy.yaml"]
        login = only(objects, "Pod", "login")["spec"]["containers"][0]["args"][0]
        try_out(Container(root, directory, text, binds), login, json.dumps(listeners))
        records = [json.loads(line) for line in (directory / "output").read_text().splitlines()]
        assert any(record.get("event.action") == "audit_stop" for record in records)
        assert yaml.safe_load(text)["logging"] == {"format": "json"}
