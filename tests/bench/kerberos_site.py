"""What the benchmarks of Kerberos measure: popproxy and Dovecot with one realm in front of the synthetic server."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.accounting import Accounting, accounting
from tests.bench.run import cpus
from tests.bench.target import Ports, Target, limit_files
from tests.bench.tools import HERE, tools
from tests.peers.kdc import Realm, realm
from tests.peers.process import accepts, free_port, require, wait_until

USER = "s1"  # whose maildrop the synthetic server chooses by the first letter
PASSWORD = "secret"
SERVICE = "pop/localhost"


@dataclass(frozen=True)
class KerberosSite:
    """What runs. `kpop` is a port of `popproxy`; `ccache` has a ticket for both proxies, who share a name."""

    realm: Realm
    popproxy: Target
    dovecot: Target
    kpop: int
    ccache: Path
    accounting: Accounting

    @property
    def service(self) -> str:
        """The principal of both proxies."""
        return f"{SERVICE}@{self.realm.name}"

    def replay_caches(self) -> Iterator[tuple[Target, str]]:
        """The proxies with the names of the files in their directories."""
        yield self.popproxy, "popproxy.rcache2"
        yield self.dovecot, "rcache"


@contextlib.contextmanager
def kerberos_site(*, authenticate: str = "passthrough", with_dovecot: bool = True) -> Iterator[KerberosSite]:
    """Starts everything; the proxies on the last CPU, all else, with this process, on the first.

    `authenticate` is how popproxy judges passwords. This process lives in the realm meanwhile.
    """
    programs, counting, where = tools(), accounting(), cpus()
    os.sched_setaffinity(0, where.load)
    limit_files()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="popproxy-bench-")))
        directory.chmod(0o755)
        it = stack.enter_context(realm())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in it.environment.items():
            patch.setenv(name, value)
        it.user(USER)
        it.service(SERVICE)
        keytab, ccache = it.keytab(SERVICE), it.kinit(USER)
        keytab.chmod(0o644)
        it.kvno(ccache, SERVICE)
        backend, kpop = Ports(free_port()), free_port()
        values = {
            "backend_port": str(backend.plain), "keytab": str(keytab), "krb5_config": str(it.config),
            "service": f"{SERVICE}@{it.name}", "realm": it.name, "kpop_port": str(kpop), "authenticate": authenticate,
        }  # fmt: skip

        def target(
            name: str, command: list[str], ports: Ports, cpu: set[int], environment: Mapping[str, str] | None = None
        ) -> Target:
            it = Target(name, [command], ports, cpu, _place(directory / name), counting.group, environment or {})
            stack.callback(it.stop)
            return it

        def configured(name: str, template: str, ports: Ports) -> str:
            place = _place(directory / name)
            own = {"name": name, "dir": str(place), "port": str(ports.plain), "http_port": str(ports.http)}
            text = (HERE / "templates" / template).read_text()
            file = place / "configuration"
            file.write_text(re.sub(r"@(\w+)@", lambda word: {**values, **own}.get(word[1], word[0]), text))
            return str(file)

        target("backend", [str(programs.backend), str(backend.plain), str(free_port())], backend, where.load).start()
        own_ports = Ports(free_port(), http=free_port())
        file = configured("popproxy", "popproxy_kerberos.yaml.in", own_ports)
        secret = directory / "popproxy" / "master.password"
        secret.write_text(PASSWORD)
        secret.chmod(0o600)
        command = [sys.executable, "-m", "popproxy", "serve", "-c", file]
        popproxy = target("popproxy", command, own_ports, where.proxy, it.environment)
        popproxy.start()
        wait_until(lambda: accepts(own_ports.http), "popproxy's metrics")
        ports = Ports(free_port())
        file = configured("dovecot", "dovecot_kerberos.conf.in", ports)
        dovecot = target("dovecot", [require("dovecot"), "-F", "-c", file], ports, where.proxy)
        if with_dovecot:
            dovecot.start()
        yield KerberosSite(it, popproxy, dovecot, kpop, ccache, counting)


def _place(directory: Path) -> Path:
    """A directory that daemons without root write into; popproxy refuses one that others could write into as well."""
    if not directory.exists():
        directory.mkdir(mode=0o755)
        owner = pwd.getpwnam("dovecot" if directory.name == "dovecot" else "nobody")
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    return directory
