"""A throw-away MIT realm whose database is in a directory: the one that allows constrained delegation.

A private slapd, reached through a socket in the realm's own directory, is its database.
"""

from __future__ import annotations

import contextlib
import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tests.peers.canaries import canary
from tests.peers.kdc import REALM, Realm
from tests.peers.process import PeerMissingError, Process, public_directory, require

_SCHEMA = Path("/usr/share/doc/krb5-kdc-ldap/kerberos.schema.gz")
_TOP = "dc=popproxy,dc=test"
_ADMIN = f"cn=admin,{_TOP}"

_SLAPD_CONF = """
include /etc/ldap/schema/core.schema
include {directory}/kerberos.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {directory}/slapd.pid
database mdb
directory {directory}/ldap
maxsize 67108864
dbnosync
suffix "{top}"
rootdn "{admin}"
rootpw {password}
"""

_BASE = """
dn: {top}
objectClass: dcObject
objectClass: organization
o: test
dc: popproxy
"""

_KDC_CONF = """
[dbmodules]
    ldap = {{
        db_library = kldap
        ldap_kerberos_container_dn = cn=krb,{top}
        ldap_kdc_dn = {admin}
        ldap_kadmind_dn = {admin}
        ldap_service_password_file = {directory}/ldap.stash
        ldap_servers = {uri}
    }}
"""


class DirectoryRealm(Realm):
    """A running KDC. Services may delegate to those that `allow_delegation` names, and to no others."""

    def __init__(self, directory: Path, name: str = REALM) -> None:
        self._slapd: Process | None = None
        try:
            super().__init__(directory, name)
        except BaseException:
            self.close()
            raise

    def allow_delegation(self, front: str, *targets: str) -> None:
        """Lets `front` act for users at `targets`, if they have shown it a ticket."""
        values = "".join(f"krbAllowedToDelegateTo: {target}@{self.name}\n" for target in targets)
        entry = f"krbPrincipalName={front}@{self.name},cn={self.name},{self.container}"
        self._ldap("ldapmodify", f"dn: {entry}\nchangetype: modify\nadd: krbAllowedToDelegateTo\n{values}")

    def allow_transition(self, front: str, *, allow: bool = True) -> None:
        """Lets `front` act there also for users who have shown it none."""
        self.kadmin("modprinc", f"{'+' if allow else '-'}ok_to_auth_as_delegate", front)

    @property
    def container(self) -> str:
        """The entry below which the realm's are."""
        return f"cn=krb,{_TOP}"

    @property
    def administrator(self) -> list[str]:
        """What makes ldapmodify, or another client, the directory's administrator."""
        password = self.directory / "directory.password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        return ["-x", "-H", self._uri, "-D", _ADMIN, "-y", str(password)]

    def close(self) -> None:
        """Ends the KDC and the directory behind it."""
        if hasattr(self, "_process"):
            self.stop()
        if self._slapd is not None:
            self._slapd.stop()

    def _create_database(self) -> None:
        self._password = canary("directory")
        self._uri = f"ldapi://{quote(str(self.directory / 'ldapi'), safe='')}"
        names = {"directory": self.directory, "top": _TOP, "admin": _ADMIN, "uri": self._uri}
        if not _SCHEMA.exists():
            raise PeerMissingError("krb5-kdc-ldap is not installed; run: make setup")
        (self.directory / "kerberos.schema").write_bytes(gzip.decompress(_SCHEMA.read_bytes()))
        (self.directory / "ldap").mkdir()
        slapd_conf = self.directory / "slapd.conf"
        slapd_conf.write_text(_SLAPD_CONF.format(**names, password=self._password))
        command: list[str | Path] = [require("slapd"), "-f", slapd_conf, "-h", self._uri, "-d", "0"]
        self._slapd = Process(f"slapd of {self.name}", command, self.directory / "slapd.log", self.directory)
        self._slapd.wait_for(self._answers, "the directory answers")
        self._ldap("ldapadd", _BASE.format(top=_TOP))
        stash = self.directory / "ldap.stash"
        stash.touch(mode=0o600)
        stash.write_text(f"{_ADMIN}#{{HEX}}{self._password.encode().hex()}\n")
        kdc_conf = self.directory / "kdc.conf"
        text = kdc_conf.read_text().replace("kdc_listen", "database_module = ldap\n        kdc_listen", 1)
        kdc_conf.write_text(text + _KDC_CONF.format(**names))
        create = ["create", "-s", "-r", self.name, "-P", canary("master"), "-subtrees", _TOP, "-sscope", "sub"]
        self._run("kdb5_ldap_util", "-D", _ADMIN, "-w", self._password, *create)

    def _answers(self) -> bool:
        done = subprocess.run(
            [require("ldapwhoami"), "-x", "-H", self._uri], env={"LDAPNOINIT": "1"}, capture_output=True, check=False
        )
        return done.returncode == 0

    def _ldap(self, program: str, text: str) -> None:
        self._run(program, *self.administrator, stdin=text)


@contextlib.contextmanager
def directory_realm(name: str = REALM) -> Iterator[DirectoryRealm]:
    """A realm for the length of a with statement."""
    with public_directory("realm") as directory:
        it = DirectoryRealm(directory, name)
        try:
            yield it
        finally:
            it.close()
