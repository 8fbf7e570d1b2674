"""Why there is no ticket for a backend: one closed set of reasons, and what an administrator can do about each.

What libkrb5 and the KDC say (RFC 4120 section 7.5.9) is not enough: KDC_ERR_BADOPTION means that the target is not on
the list of the proxy, or that the user must not be delegated. `popproxy.kerberos.delegation` tells the two apart.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import Final

from popproxy.errors import PopproxyError

_BASE: Final = -1765328384
"""ERROR_TABLE_BASE_krb5."""
_SIGN: Final = 1 << 31
_KEYTAB_NOMATCH: Final = 39756033
"""KG_KEYTAB_NOMATCH of MIT's GSSAPI library: the keytab has no such key."""


class Obstacle(StrEnum):
    """What is in the way: in the audit record and in metrics."""

    KDC = "kdc"  # it does not answer, or not in a way that is final
    UNAVAILABLE = "unavailable"  # all our threads wait for it, or the deadline has passed
    NOT_ALLOWED = "not_allowed"  # the KDC does not let the proxy act for users there
    NO_TARGET = "no_target"  # the KDC knows no such service
    NOT_DELEGATABLE = "not_delegatable"  # this user, or this ticket; others may be
    OWN_CREDENTIAL = "own_credential"  # the proxy's own keytab or principal is of no use


class DelegationFailed(PopproxyError):
    """There is no ticket for the backend. Nothing has been sent there.

    `strategy` is the pool's word for what was tried; `what` is in the way, `cure` what an administrator can do about
    it. They name principals, and are for the operational log.
    """

    def __init__(self, obstacle: Obstacle, strategy: str, what: str, cure: str = "") -> None:
        super().__init__(f"{what}; {cure}" if cure else what)
        self.obstacle = obstacle
        self.strategy = strategy
        self.what = what
        self.cure = cure

    @property
    def temporary(self) -> bool:
        """It may work later without anybody's doing."""
        return self.obstacle in (Obstacle.KDC, Obstacle.UNAVAILABLE)


def number_of(min_code: int) -> int:
    """The number of a GSSError's minor status: as in RFC 4120 for the KDC's errors, the library's own behind that.

    An errno comes out negative; what GSSAPI itself has to say is far above.
    """
    minor = min_code - (1 << 32) if min_code >= _SIGN else min_code
    if _BASE <= minor < _BASE + 256:
        return minor - _BASE
    return -minor if 0 < minor < 256 else minor


REFUSED_BY_POLICY: Final = frozenset({12, 13})  # KDC_ERR_POLICY, KDC_ERR_BADOPTION
NO_SUCH_SERVICE: Final = frozenset({7})  # KDC_ERR_S_PRINCIPAL_UNKNOWN
_USER: Final = {
    1: "the account has ended",  # KDC_ERR_NAME_EXP
    6: "the KDC does not know the user",  # KDC_ERR_C_PRINCIPAL_UNKNOWN
    18: "the account is disabled or locked",  # KDC_ERR_CLIENT_REVOKED
    21: "the account is not valid yet",  # KDC_ERR_CLIENT_NOTYET
    23: "the password must be changed",  # KDC_ERR_KEY_EXPIRED
    32: "the ticket has expired",  # KRB_AP_ERR_TKT_EXPIRED
    68: "the KDC sends the user to another realm",  # KDC_ERR_WRONG_REALM
    141: "there is no ticket that could be used",  # KRB5_CC_NOTFOUND
    221: "the ticket is not forwardable",  # KRB5_TKT_NOT_FORWARDABLE
}
_EXPORT: Final = "export the key anew: ktadd (MIT, Heimdal), ipa-getkeytab (FreeIPA), ktpass or msktutil (Windows)"
_OWN: Final = {
    6: ("the KDC does not know it", "create it, or write the account it belongs to as kerberos.client_principal"),
    9: ("it has no key at the KDC", _EXPORT),  # KDC_ERR_NULL_KEY
    14: ("the KDC takes no key of the kind in the keytab", _EXPORT),  # KDC_ERR_ETYPE_NOSUPP
    18: ("the KDC has disabled it", "enable it"),
    24: ("the keytab has another key than the KDC", _EXPORT),  # KDC_ERR_PREAUTH_FAILED
    31: ("the keytab has another key than the KDC", _EXPORT),  # KRB_AP_ERR_BAD_INTEGRITY
    181: ("the keytab has no key of it", _EXPORT),  # KRB5_KT_NOTFOUND
    -errno.ENOENT: ("there is no keytab", "correct kerberos.keytab"),
    -errno.EACCES: ("the keytab may not be read", "let popproxy's user read it, and nobody else"),
    _KEYTAB_NOMATCH: ("the keytab has no key of it, or cannot be read", _EXPORT),
}
_KDC: Final = {
    37: ("the clocks of the KDC and of this machine differ too much", "keep both by NTP"),  # KRB_AP_ERR_SKEW
    154: ("nothing says where the KDC of the realm is", "name it in krb5.conf or DNS"),  # KRB5_REALM_UNKNOWN
    156: ("no KDC of the realm answers", "is it up, and is there a firewall in between?"),  # KRB5_KDC_UNREACH
    220: ("nothing says where the KDC of the realm is", "name it in krb5.conf or DNS"),  # KRB5_REALM_CANT_RESOLVE
}


def user_failed(number: int, strategy: str, user: str) -> DelegationFailed:
    """A ticket in the name of a user could not be had."""
    why = _USER.get(number)
    if why is None:
        return kdc_failed(number, strategy)
    return DelegationFailed(Obstacle.NOT_DELEGATABLE, strategy, f"no ticket in the name of {user}: {why}")


def own_failed(number: int, strategy: str, own: str) -> DelegationFailed:
    """The proxy's own ticket could not be had."""
    known = _OWN.get(number)
    if known is None:
        return kdc_failed(number, strategy)
    why, cure = known
    return DelegationFailed(Obstacle.OWN_CREDENTIAL, strategy, f"no ticket for {own} itself: {why}", cure)


def kdc_failed(number: int, strategy: str) -> DelegationFailed:
    """The KDC has not answered, or not finally."""
    why, cure = _KDC.get(number, (f"error {number}", ""))
    return DelegationFailed(Obstacle.KDC, strategy, f"Kerberos: {why}", cure)


def no_target(strategy: str, target: str) -> DelegationFailed:
    """The backend has no principal."""
    cure = "create it, or correct kerberos.principal of the pool"
    return DelegationFailed(Obstacle.NO_TARGET, strategy, f"the KDC knows no {target}", cure)


def not_allowed(strategy: str, own: str, target: str) -> DelegationFailed:
    """The target is not on the proxy's list."""
    cure = (
        f"put {target} on its list: krbAllowedToDelegateTo (MIT with LDAP), msDS-AllowedToDelegateTo (Windows), "
        "ipa servicedelegationtarget-add-member (FreeIPA), kadmin modify --constrained-delegation (Heimdal)"
    )
    what = f"the KDC does not let {own} act for users at {target}"
    return DelegationFailed(Obstacle.NOT_ALLOWED, strategy, what, cure)


def ticket_not_forwardable(strategy: str, user: str) -> DelegationFailed:
    """The client has shown a ticket that cannot be used for delegation."""
    what = f"the ticket that {user} has shown is not forwardable"
    cure = "write forwardable = true in the clients' krb5.conf, unless the user must not be delegated"
    return DelegationFailed(Obstacle.NOT_DELEGATABLE, strategy, what, cure)


def no_transition(strategy: str, own: str, user: str) -> DelegationFailed:
    """The ticket that the KDC has made in the user's name cannot be used for delegation."""
    what = (
        f"the KDC gives {own} no forwardable ticket in the name of {user}: the user must not be delegated, or {own} "
        "may not speak for users who have shown it no ticket"
    )
    cure = (
        "to allow that: kadmin modprinc +ok_to_auth_as_delegate (MIT), ipa service-mod --ok-to-auth-as-delegate=true "
        "(FreeIPA), 'use any authentication protocol' (Windows), kadmin modify "
        "--attributes=+trusted-for-delegation (Heimdal)"
    )
    return DelegationFailed(Obstacle.NOT_DELEGATABLE, strategy, what, cure)
