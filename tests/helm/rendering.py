"""The chart as helm renders it."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.peers.process import REPOSITORY, PeerMissingError

CHART = REPOSITORY / "helm/popproxy"
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
MINIMAL = CHART / "ci/minimal-values.yaml"
KERBEROS = CHART / "ci/kerberos-values.yaml"
_HELM = REPOSITORY / ".venv/peers/helm/helm"
Object = dict[str, Any]


def helm(*arguments: str | Path, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    """Runs `helm` in an environment of its own, on `chart`; the release is called mail."""
    if not _HELM.exists():
        raise PeerMissingError("helm is not installed; run: make setup")
    command, *rest = (str(argument) for argument in arguments)
    with tempfile.TemporaryDirectory() as home:
        return subprocess.run(
            [_HELM, command, *(["mail"] if command == "template" else []), str(chart), *rest],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"HOME": home, "PATH": "/usr/bin:/bin"},
        )


@functools.cache
def rendered(values: Path, version: str = "1.31.0") -> tuple[Object, ...]:
    """All objects of a release called mail, for a cluster of this version."""
    ended = helm("template", "--namespace", "post", "--kube-version", version, "-f", values)
    assert ended.returncode == 0, ended.stderr
    return tuple(document for document in yaml.safe_load_all(ended.stdout) if document)


def template(path: Path, values: str) -> subprocess.CompletedProcess[str]:
    """What helm says to the minimal values with `values` over them, written to `path`."""
    path.write_text(values)
    return helm("template", "-f", MINIMAL, "-f", path)


def only(objects: tuple[Object, ...], kind: str, ending: str = "") -> Object:
    """The one object of this kind whose name ends so."""
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(ending)]
    return found


def notes(directory: Path, values: Path) -> str:
    """NOTES.txt: helm shows it only after it has spoken to a cluster, so it is rendered as an object instead."""
    copy = directory / "chart"
    shutil.copytree(CHART, copy)
    text = (copy / "templates/NOTES.txt").read_text()
    wrapped = 'kind: Notes\nmetadata: {name: notes}\ntext: |-\n  {{- include "the.notes" . | nindent 2 }}\n'
    (copy / "templates/notes.yaml").write_text('{{- define "the.notes" -}}\n' + text + "{{- end -}}\n" + wrapped)
    ended = helm("template", "-f", values, "--show-only", "templates/notes.yaml", chart=copy)
    assert ended.returncode == 0, ended.stderr
    return str(yaml.safe_load(ended.stdout)["text"])
