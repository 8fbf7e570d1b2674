"""Who judges passwords, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from popproxy.auth.directory import DirectoryAuthenticator
from popproxy.auth.kerberos import Kdc, KerberosPasswordAuthenticator
from popproxy.auth.names import vet_name
from popproxy.auth.passthrough import PassThrough
from popproxy.auth.result import Authenticator
from popproxy.auth.users_file import UsersFile, UsersFileAuthenticator
from popproxy.config.model import Authentication
from popproxy.directories.entry import DigestJudge, Directory
from popproxy.kerberos.mapping import PrincipalMap, RealmRule
from popproxy.state.executors import BoundedExecutor


@dataclass(frozen=True, slots=True)
class KdcJudge:
    """Who asks a KDC about passwords, and whose maildrops its users have."""

    kdc: Kdc
    principals: PrincipalMap
    realms: list[RealmRule]


def password_judges(
    checks: Sequence[str], rules: Authentication, *, users: UsersFile | None, kdc: KdcJudge | None,
    executor: BoundedExecutor, directories: Mapping[str, Directory], digests: Mapping[str, DigestJudge],
) -> list[Authenticator]:  # fmt: skip
    """Those whom `checks` names, in this order. `executor` verifies hashes."""
    found: list[Authenticator] = []
    vet = partial(vet_name, default_domain=rules.default_domain, case=rules.case)
    for number, check in enumerate(checks, 1):
        last = number == len(checks)
        if check == "users" and users is not None:
            found.append(UsersFileAuthenticator(users, executor, decisive=last))
        elif check == "kerberos" and kdc is not None:
            found.append(
                KerberosPasswordAuthenticator(
                    kdc.kdc, kdc.principals, kdc.realms, rules.default_domain, vet, decisive=last
                )
            )
        elif check == "passthrough":
            found.append(PassThrough())
        elif check in directories:
            judge = digests.get(check)
            found.append(DirectoryAuthenticator(directories[check], vet, decisive=last, digests=judge))
    return found
