"""What the guides in config/kerberos/ tell an administrator to type does what they say, line by line."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from popproxy.kerberos.acceptor import Acceptor
from popproxy.kerberos.delegation import Delegation
from popproxy.kerberos.delegation_failure import DelegationFailed, Obstacle
from popproxy.kerberos.keytab import entries
from popproxy.kerberos.refusal import KerberosRefused, Refusal
from popproxy.state.executors import BoundedExecutor
from tests.peers.heimdal import HeimdalRealm, heimdal_realm
from tests.peers.kdc_ldap import DirectoryRealm, directory_realm
from tests.peers.krb5_client import ApReqClient, gss_framed

GUIDES = Path(__file__).parents[2] / "config/kerberos"
REALM = "EXAMPLE.COM"
SERVICE, SERVER = f"pop/mail.example.com@{REALM}", f"pop/newmail.example.com@{REALM}"
STRATEGIES = ("kerberos-delegated", "kerberos-transition")

_CHOWN = 'test "$1" = popproxy:'
_INSTALL = 'test "$1 $2 $3 $4 $5" = "-d -m 700 -o popproxy" && exec /usr/bin/install -d -m 700 "$6"'


class Administrator:
    """Types the blocks of a guide. `programs` are what is not to act on this machine: shell scripts by name."""

    def __init__(self, guide: str, directory: Path, programs: dict[str, str], environment: dict[str, str]) -> None:
        self.blocks = re.findall(r"^```sh\n(.*?)^```$", (GUIDES / guide).read_text(), re.MULTILINE | re.DOTALL)
        self.keytab = directory / "etc/pop.keytab"
        self.replay = directory / "lib/replay"
        self._directory = directory
        self._environment = environment
        self._programs = directory / "programs"
        for folder in (self._programs, self.keytab.parent):
            folder.mkdir()
        for name, text in {"chown": _CHOWN, "install": _INSTALL, **programs}.items():
            (self._programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (self._programs / name).chmod(0o755)

    def type(self, number: int) -> None:
        """The block with this number; every line of it must succeed."""
        text = self.blocks[number].replace("/etc/popproxy", str(self.keytab.parent))
        text = text.replace("/var/lib/popproxy", str(self.replay.parent))
        environment = {**self._environment, "PATH": f"{self._programs}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        done = subprocess.run(
            ["/bin/sh", "-eux"], input=text, env=environment, cwd=self._directory, timeout=60, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert "kadmin: " not in done.stdout, done.stdout  # MIT's and Heimdal's end with 0 after most failures


def obstacle(keytab: Path, strategy: str, pool: BoundedExecutor) -> Obstacle | None:
    """What is in the way of a popproxy with this keytab at the server; None if nothing is."""
    try:
        Delegation(keytab, SERVICE, executor=pool, keep=0).rehearse(strategy, SERVER, SERVICE)
    except DelegationFailed as failed:
        return failed.obstacle
    return None


@pytest.fixture
def pool() -> BoundedExecutor:
    """For what runs in this thread."""
    return BoundedExecutor("guide", 1, 1, 10)


def enter(realm: DirectoryRealm | HeimdalRealm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in realm.environment.items():
        monkeypatch.setenv(name, value)


def test_mit(tmp_path: Path, pool: BoundedExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    with directory_realm(REALM) as realm:
        enter(realm, monkeypatch)
        programs = {
            "kadmin": f'exec kadmin.local -r {REALM} "$@"',
            "ldapmodify": f"sed 's/cn=krbContainer,dc=example,dc=com/{realm.container}/' |"
            f" /usr/bin/ldapmodify {' '.join(realm.administrator)}",
        }
        it = Administrator("mit.md", tmp_path, programs, realm.environment)
        service, on_the_list, transition, never, new_key, without_old = range(6)
        assert len(it.blocks) == 6
        for user in ("alice", "bob"):
            realm.user(user)
        realm.service("pop/newmail.example.com")
        it.type(service)
        assert [obstacle(it.keytab, strategy, pool) for strategy in STRATEGIES] == [Obstacle.NOT_ALLOWED] * 2
        it.type(on_the_list)
        assert [obstacle(it.keytab, strategy, pool) for strategy in STRATEGIES] == [None, Obstacle.NOT_DELEGATABLE]
        it.type(transition)
        assert [obstacle(it.keytab, strategy, pool) for strategy in STRATEGIES] == [None, None]
        it.type(never)
        delegation = Delegation(it.keytab, SERVICE, executor=pool)
        assert delegation.transition(f"alice@{REALM}").context(SERVER, None).step(None)
        with pytest.raises(DelegationFailed) as caught:
            delegation.transition(f"bob@{REALM}").context(SERVER, None).step(None)
        assert caught.value.obstacle is Obstacle.NOT_DELEGATABLE

        acceptor = Acceptor(it.keytab, [SERVICE], rcache_dir=it.replay, executor=pool)
        caches = []
        for block, versions in ((None, {2}), (new_key, {2, 3}), (without_old, {3})):
            if block is not None:
                it.type(block)
            caches.append(realm.kinit("alice"))
            realm.kvno(caches[-1], SERVICE)
            assert {entry.version for entry in entries(it.keytab)} == versions
            for number, cache in enumerate(caches):
                context = acceptor.new_context()
                token = gss_framed(ApReqClient(cache, SERVICE).ap_req)
                if number == 0 and block == without_old:
                    with pytest.raises(KerberosRefused) as refused:
                        context.step(token)
                    assert refused.value.reason is Refusal.KEYTAB
                else:
                    context.step(token)
                    assert context.initiator == f"alice@{REALM}"


def test_heimdal(tmp_path: Path, pool: BoundedExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    with heimdal_realm(REALM) as realm:
        enter(realm, monkeypatch)
        it = Administrator("heimdal-freeipa.md", tmp_path, {"kadmin": realm.kadmin_script}, realm.environment)
        service, keep_it, on_the_list, transition = range(4)
        assert len(it.blocks) == 4
        realm.user("alice")
        realm.service("pop/newmail.example.com")
        it.type(service)
        it.type(keep_it)
        assert [obstacle(it.keytab, strategy, pool) for strategy in STRATEGIES] == [Obstacle.NOT_ALLOWED] * 2
        it.type(on_the_list)
        assert [obstacle(it.keytab, strategy, pool) for strategy in STRATEGIES] == [None, Obstacle.NOT_DELEGATABLE]
        it.type(transition)
        assert [obstacle(it.keytab, strategy, pool) for strategy in STRATEGIES] == [None, None]
        cache = realm.kinit("alice")
        realm.kvno(cache, SERVICE)
        context = Acceptor(it.keytab, [SERVICE], rcache_dir=it.replay, executor=pool).new_context()
        context.step(gss_framed(ApReqClient(cache, SERVICE).ap_req))
        assert context.initiator == f"alice@{REALM}"
