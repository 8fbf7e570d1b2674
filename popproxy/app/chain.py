"""Who judges the passwords of a listener's clients, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from popproxy.auth.kerberos import Kdc, KerberosPasswordAuthenticator
from popproxy.auth.names import vet_name
from popproxy.auth.passthrough import PassThrough
from popproxy.auth.result import Authenticator
from popproxy.auth.users_file import UsersFile, UsersFileAuthenticator
from popproxy.config.model import Authentication, Listener
from popproxy.kerberos.mapping import PrincipalMap, RealmRule
from popproxy.state.executors import BoundedExecutor


@dataclass(frozen=True, slots=True)
class KdcJudge:
    """Who asks a KDC about passwords, and whose maildrops its users have."""

    kdc: Kdc
    principals: PrincipalMap
    realms: list[RealmRule]


def password_judges(
    listener: Listener, rules: Authentication, *, users: UsersFile | None, kdc: KdcJudge | None,
    executor: BoundedExecutor,
) -> list[Authenticator]:  # fmt: skip
    """Those whom `listener.authenticate` names, in this order. `executor` verifies hashes."""
    found: list[Authenticator] = []
    for number, check in enumerate(listener.authenticate, 1):
        last = number == len(listener.authenticate)
        if check == "users" and users is not None:
            found.append(UsersFileAuthenticator(users, executor, decisive=last))
        elif check == "kerberos" and kdc is not None:
            vet = partial(vet_name, default_domain=rules.default_domain, case=rules.case)
            found.append(
                KerberosPasswordAuthenticator(
                    kdc.kdc, kdc.principals, kdc.realms, rules.default_domain, vet, decisive=last
                )
            )
        elif check == "passthrough":
            found.append(PassThrough())
    return found
