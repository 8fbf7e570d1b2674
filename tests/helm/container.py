"""The Dockerfile without an engine: its steps in a clean Debian, then its program as Kubernetes would run it.

python -m tests.helm.container        (make container; root, debootstrap, some minutes)

Root directory read-only, a user without any capability, empty volumes where the chart has them, a network of its own.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.certs import Authority
from tests.peers.process import REPOSITORY, PeerMissingError, Process, require

DOCKERFILE = REPOSITORY / "Dockerfile"
REPLAY_CACHE = ["install", "-d", "-m", "0700", "/var/lib/popproxy/replay"]
"""What the chart has done before popproxy starts with Kerberos."""
_SEE_STATUS_PAGE = """
from urllib.request import urlopen
assert b"<html" in urlopen("http://127.0.0.1:9110/status").read()
"""
_USE_REPLAY_CACHE = """
from pathlib import Path
from popproxy.kerberos.service import ReplayCache
ReplayCache(Path("/var/lib/popproxy/replay"))
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class Stage:
    """A FROM, and what stands below it, word and rest."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, word: str) -> str:
        """The rest of the last line that begins with `word`."""
        return [rest for found, rest in self.steps if found == word][-1]

    def program(self) -> list[str]:
        """What is run without arguments."""
        words: list[str] = json.loads(self.last("ENTRYPOINT")) + json.loads(self.last("CMD"))
        return words

    def health(self) -> list[str]:
        """What HEALTHCHECK runs."""
        words: list[str] = json.loads(self.last("HEALTHCHECK").partition("CMD ")[2])
        return words

    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        pairs = (pair.partition("=") for word, rest in self.steps if word == "ENV" for pair in shlex.split(rest))
        return {name: value for name, _, value in pairs}


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    found: list[Stage] = []
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name))
        elif word:
            found[-1].steps.append((word, re.sub(r"\s+", " ", rest.strip())))
    return found


def context() -> Iterator[Path]:
    """The files that .dockerignore lets through, relative to the repository."""
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        parts = [name, *map(str, Path(name).parents)]
        taken = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            anywhere = pattern.startswith("**/")
            found = [Path(part).name for part in parts] if anywhere else parts
            if any(fnmatch.fnmatchcase(part, pattern.removeprefix("**/")) for part in found):
                taken = rule.startswith("!")
        if taken:
            yield Path(name)


def copy_context(target: Path, sources: Sequence[str]) -> None:
    """What COPY of `sources` puts into the directory `target`, from the build context."""
    for source in sources:
        files = [path for path in context() if path == Path(source) or Path(source) in path.parents]
        assert files, f".dockerignore keeps {source} out"
        for path in files:
            place = target / (path.relative_to(source) if Path(source) in path.parents else path.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / path, place)


def build(directory: Path) -> Path:
    """Perform all steps on Debian's smallest system; the root directory of the last stage."""
    base = directory / "base"
    say("debootstrap bookworm")
    run([require("debootstrap"), "--variant=minbase", "bookworm", base])
    roots: dict[str, Path] = {}
    for stage in stages(DOCKERFILE.read_text()):
        assert stage.base == "debian:bookworm-slim", "the base must be what debootstrap makes"
        root = roots[stage.name] = directory / (stage.name or "image")
        run(["cp", "-a", base, root])
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        here = "/"
        for word, rest in stage.steps:
            say(f"{word} {rest}"[:110])
            match word:
                case "RUN":
                    _run_inside(root, f"cd {here} && {rest}")
                case "WORKDIR":
                    here = rest
                    (root / here.lstrip("/")).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    *sources, target = rest.split()
                    place = root / (Path(here) / target).relative_to("/")
                    if sources[0].startswith("--from="):
                        origin = roots[sources.pop(0).removeprefix("--from=")] / sources[0].lstrip("/")
                        run(["cp", "-a", origin, place])
                    else:
                        copy_context(place, sources)
    return roots[""]


def _run_inside(root: Path, command: str) -> None:
    """As RUN does it. Where this machine trusts an authority of its own for pip, so does it there."""
    trusted = os.environ.get("PIP_CERT")
    authority = root / "var/tmp/authority.pem"
    if trusted:
        shutil.copy(trusted, authority)
    variable = "PIP_CERT=/var/tmp/authority.pem" if trusted else ""
    script = (
        'mount --make-rprivate / && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && '
        f'exec chroot "$0" env -i PATH={_PATH} DEBIAN_FRONTEND=noninteractive {variable} sh -c "$1"'
    )
    run(["unshare", "--mount", "sh", "-c", script, root, command])
    authority.unlink(missing_ok=True)


class Container:
    """The program of the image in `root`, started as its last stage says, with `configuration` and a certificate."""

    def __init__(self, root: Path, directory: Path, configuration: str, binds: Sequence[tuple[Path, str]] = ()) -> None:
        if os.geteuid() != 0:
            raise PeerMissingError("a read-only root directory can only be made by root; run: sudo make test")
        self.stage = stages(DOCKERFILE.read_text())[-1]
        self._user = self.stage.last("USER")
        group = int(self._user.partition(":")[2])
        etc = directory / "etc-popproxy"
        secret = etc / "tls"
        secret.mkdir(parents=True)
        files = Authority(directory).issue("mail.example.com")
        shutil.copy(files.cert, secret / "tls.crt")
        shutil.copy(files.key, secret / "tls.key")
        for path in secret.iterdir():  # as a secret's volume with defaultMode 0440 has them
            os.chown(path, 0, group)
            path.chmod(0o440)
        (etc / "config").mkdir()
        (etc / "config/popproxy.yaml").write_text(configuration)
        self._environment = {**self.stage.environment(), "POPPROXY_CONFIG": "/etc/popproxy/config/popproxy.yaml"}
        volumes = "".join(
            f'mount -t tmpfs -o mode=2777,gid={group} none "$root{path}"\n'
            for path in ("/run/popproxy", "/var/lib/popproxy", "/tmp")
        )
        mounts = "".join(
            f'mount --rbind {shlex.quote(str(a))} "$root{b}"\n' for a, b in [*binds, (etc, "/etc/popproxy")]
        )
        script = (
            'set -e\nroot=$0\nmount --make-rprivate /\nip link set lo up\nmount --bind "$root" "$root"\n'
            f'{mounts}mount -t proc proc "$root/proc"\nmount --rbind /dev "$root/dev"\n'
            f'mount -o remount,bind,ro "$root"\n{volumes}'
            f'exec chroot "$root" {self._as_user(self.stage.program())}'
        )
        self.process = Process(
            "container", ["unshare", "--mount", "--net", "sh", "-c", script, root], directory / "output", directory
        )

    def _as_user(self, command: Sequence[str]) -> str:
        user, group = self._user.split(":")
        return shlex.join([
            *("setpriv", f"--reuid={user}", f"--regid={group}", f"--groups={group}", "--no-new-privs"),
            *("--bounding-set=-all", "--inh-caps=-all", "env", "-i"),
            *(f"{name}={value}" for name, value in self._environment.items()),
            *command,
        ])  # fmt: skip

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs another command in it, as `docker exec` would."""
        kept, self._environment = self._environment, {**self._environment, **environment}
        inside = self._as_user(command)
        self._environment = kept
        return subprocess.run(
            [
                "nsenter",
                f"--target={self.process.pid}",
                "--mount",
                "--net",
                "--root",
                "--wd",
                "sh",
                "-c",
                f"exec {inside}",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait(self) -> None:
        """Until HEALTHCHECK says that it is well."""
        self.process.wait_for(lambda: self.run(self.stage.health()).returncode == 0, "the container to be well", 60)


def try_out(container: Container, program: str, listeners: str) -> None:
    """It is well, answers mail clients (`program` is that of `helm test`), can write to nothing, ends when told to."""
    try:
        container.wait()
        ended = container.run(
            ["/opt/popproxy/bin/python", "-c", program], POPPROXY_HOST="127.0.0.1", POPPROXY_LISTENERS=listeners
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stdout.count("greets, and can do") == 2, ended.stdout
        python = ["/opt/popproxy/bin/python", "-c"]
        for command in (
            ["popproxy", "who"],
            ["popproxy", "reload"],
            [*python, _SEE_STATUS_PAGE],
            REPLAY_CACHE,
            [*python, _USE_REPLAY_CACHE],
        ):
            ended = container.run(command)
            assert ended.returncode == 0, ended.stdout + ended.stderr
        ended = container.run(["sh", "-c", "id -u; touch /var/lib/popproxy/it; touch /etc/it /opt/popproxy/it"])
        assert ended.stdout.startswith(container.stage.last("USER").partition(":")[0])
        assert ended.stderr.count("Read-only file system") == 2, ended.stderr
    finally:
        status = container.process.stop(30)
    assert status == 0, container.process.log.read_text()


def run(command: Sequence[str | Path]) -> None:
    """Runs it; its output only if it fails."""
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{ended.stdout[-4000:]}{ended.stderr[-4000:]}")


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)


def main() -> None:
    """All of it; exit status 0 if the image does what it should."""
    from tests.helm.rendering import MINIMAL, only, rendered

    objects = rendered(MINIMAL)
    program = only(objects, "Pod", "login")["spec"]["containers"][0]["args"][0]
    listeners = [{"name": "pop3", "port": 1110, "tls": "stls"}, {"name": "pop3s", "port": 1995, "tls": "implicit"}]
    with tempfile.TemporaryDirectory(prefix="popproxy-container-") as name, contextlib.chdir(name):
        directory = Path(name)
        directory.chmod(0o755)
        root = build(directory)
        say("start it, read-only, without capabilities")
        text = only(objects, "ConfigMap", "popproxy")["data"]["popproxy.yaml"]
        container = Container(root, directory, text)
        try_out(container, program, json.dumps(listeners))
        size = subprocess.run(["du", "-sm", root], capture_output=True, text=True, check=True).stdout.split()[0]
    say(f"the image does what it should; {size} MB")


if __name__ == "__main__":
    main()
