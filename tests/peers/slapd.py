"""A real slapd with people, a service account, a branch that refers elsewhere, and a password policy."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import Process, accepts, free_port, public_directory, require

SUFFIX = "dc=example,dc=com"
PEOPLE = f"ou=people,{SUFFIX}"
SERVICE = f"cn=popproxy,{SUFFIX}"
_MODULES = "/usr/lib/ldap"

_CONFIGURATION = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/misc.schema
pidfile {directory}/slapd.pid
argsfile {directory}/slapd.args
modulepath {modules}
moduleload back_mdb
moduleload ppolicy
TLSCertificateFile {cert}
TLSCertificateKeyFile {key}
TLSCACertificateFile {ca}
{extra}
database mdb
suffix "{suffix}"
rootdn "cn=root,{suffix}"
directory {directory}/data
maxsize 10485760
index objectClass eq
index uid,mail eq
overlay ppolicy
ppolicy_default "cn=policy,{suffix}"
ppolicy_use_lockout
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="{people}" by dn.exact="{service}" read by self read by * none
access to * by * read
"""

_BASE = """\
dn: {suffix}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: {people}
objectClass: organizationalUnit
ou: people

dn: ou=away,{suffix}
objectClass: referral
objectClass: extensibleObject
ou: away
ref: ldap://127.0.0.1:9/ou=people,{suffix}

dn: {service}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: popproxy
userPassword: {password}

dn: cn=policy,{suffix}
objectClass: organizationalRole
objectClass: pwdPolicy
cn: policy
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 1000

dn: cn=strict,{suffix}
objectClass: organizationalRole
objectClass: pwdPolicy
cn: strict
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 1
"""


@dataclass(frozen=True, slots=True)
class Person:
    """An entry below ou=people. `more` are lines of LDIF. Without a password it gets one of its own."""

    uid: str
    mail: str = ""
    more: str = ""
    password: str = field(default="", repr=False)


class Slapd:
    """Listens on `port` (StartTLS if the client asks) and `tls_port`. `passwords` are by uid, "" is the service's."""

    def __init__(
        self, directory: Path, authority: Authority, certificate: CertificateFiles, people: Iterable[Person], extra: str
    ) -> None:
        self.directory = directory
        self.port, self.tls_port = free_port(), free_port()
        people = list(people)
        self.passwords = {
            person.uid: person.password or canary(f"ldap-{number}") for number, person in enumerate(people)
        }
        self.passwords[""] = canary("ldap-service")
        self.account_file = directory / "account.password"
        self.account_file.write_text(self.passwords[""] + "\n")
        self.account_file.chmod(0o600)
        (directory / "data").mkdir()
        configuration = directory / "slapd.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                directory=directory, modules=_MODULES, suffix=SUFFIX, people=PEOPLE, service=SERVICE,
                cert=certificate.cert, key=certificate.key, ca=authority.ca, extra=extra,
            )
        )  # fmt: skip
        ldif = directory / "entries.ldif"
        ldif.write_text(
            _BASE.format(suffix=SUFFIX, people=PEOPLE, service=SERVICE, password=self.passwords[""])
            + "".join(self._entry(person) for person in people)
        )
        slapd = require("slapd")
        done = subprocess.run(
            [slapd, "-T", "add", "-f", str(configuration), "-l", str(ldif), "-q"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self._command: list[str | Path] = [
            slapd, "-d", "stats", "-f", configuration,
            "-h", f"ldap://127.0.0.1:{self.port} ldaps://127.0.0.1:{self.tls_port}",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Again, after `stop`."""
        self._process = Process("slapd", self._command, self.directory / "slapd.log", self.directory)
        self._process.wait_for(lambda: accepts(self.port) and accepts(self.tls_port), "slapd to listen")

    def stop(self) -> None:
        """Nobody listens any more."""
        self._process.signal(signal.SIGCONT)
        self._process.stop()

    def freeze(self) -> None:
        """It still listens, but answers nothing, until `thaw`."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        self._process.signal(signal.SIGCONT)

    def log(self) -> str:
        """Every operation so far, with the filters as they arrived."""
        return (self.directory / "slapd.log").read_text(errors="replace")

    def _entry(self, person: Person) -> str:
        mail = person.mail or f"{person.uid}@example.com"
        return (
            f"\ndn: uid={person.uid},{PEOPLE}\nobjectClass: inetOrgPerson\nobjectClass: inetLocalMailRecipient\n"
            f"uid: {person.uid}\ncn: {person.uid}\nsn: {person.uid}\nmail: {mail}\n"
            f"userPassword: {self.passwords[person.uid]}\n{person.more}"
        )


@contextlib.contextmanager
def slapd(
    authority: Authority, certificate: CertificateFiles, people: Iterable[Person], extra: str = ""
) -> Iterator[Slapd]:
    """A slapd for the length of a with statement."""
    with public_directory("slapd") as directory:
        server = Slapd(directory, authority, certificate, people, extra)
        try:
            yield server
        finally:
            server.stop()
