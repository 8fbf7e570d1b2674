"""The part of the LDAP client that runs in helper processes: the only home of bonsai and libldap.

libldap resolves names, connects and shakes hands without giving anybody else a turn: bonsai holds the interpreter lock
during all of that, in its asynchronous mode too, so that one silent server would stop every session of the proxy. A
worker can block for itself alone, and is killed when it is late; and a server whose answers crash the library crashes
nothing else.

Questions: ``{op: search, search}``, ``{op: bind, name, password, search}``, ``{op: search_bind, search, password}`` and
``{op: probe, search, name}``. A search is ``{base, filter, scope}``, the password is in base64. Answers have a
`result`: found (with dn and attributes), accepted (with attributes), refused (with reason), unknown, ambiguous or
unavailable (with why). What a server wrote is in none of them: it may have written the password.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from popproxy.directories.ldap_greeting import greet

_OPT_NETWORK_TIMEOUT: Final = 0x5005

_RESULTS = {
    1: "operationsError", 2: "protocolError", 3: "timeLimitExceeded", 7: "authMethodNotSupported",
    8: "strongerAuthRequired", 10: "referral", 11: "adminLimitExceeded", 13: "confidentialityRequired",
    16: "noSuchAttribute", 18: "inappropriateMatching", 19: "constraintViolation", 21: "invalidAttributeSyntax",
    32: "noSuchObject", 34: "invalidDNSyntax", 48: "inappropriateAuthentication", 49: "invalidCredentials",
    50: "insufficientAccessRights", 51: "busy", 52: "unavailable", 53: "unwillingToPerform",
}  # fmt: skip
"""RFC 4511 section 4.1.9."""

# Active Directory: in the diagnostic message of invalidCredentials.
_AD_CODE = re.compile(r"\bdata ([0-9a-f]{2,8})\b")
_AD_REASONS = {
    "525": "unknown", "530": "account_restricted", "531": "account_restricted", "532": "password_expired",
    "533": "disabled", "701": "account_expired", "773": "password_expired", "775": "account_locked",
}  # fmt: skip
_AD_USER_EXISTS: Final = "52e"  # and its password is another
_POLICY_REASONS = {"PasswordExpired": "password_expired", "AccountLocked": "account_locked"}
_POLICY_REASONS |= {"ChangeAfterReset": "password_expired"}
# 389 Directory Server and its relatives say this in other ways.
_389_REASONS = ((53, "inactivated", "disabled"), (19, "retry limit", "account_locked"))
_SERVER_TRUST: Final = 30.0  # seconds for which a server that answered is taken to be alive
_BASE_TRUST: Final = 60.0  # seconds for which a base that was there is taken to be there

Answer = dict[str, Any]


def prepare(settings: dict[str, Any]) -> Callable[[Answer, float], Answer]:
    """The worker's function. Imports bonsai and sets up libldap. Raises ImportError and OSError."""
    os.environ["LDAPNOINIT"] = "1"  # nobody else's ldap.conf decides here
    # TLS 1.2 at least: Debian's libldap uses GnuTLS, which takes that from a file alone; OpenSSL 3 does so by itself
    os.environ["GNUTLS_SYSTEM_PRIORITY_FILE"] = str(Path(__file__).with_name("gnutls.conf"))
    bonsai: Any = importlib.import_module("bonsai")
    library = ctypes.CDLL(bonsai._bonsai.__file__)  # finds the symbols of the libldap that bonsai itself uses
    set_option = library.ldap_set_option
    set_option.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

    class TimeVal(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))

    seconds = settings["connect_seconds"]
    wait = TimeVal(int(seconds), int(seconds % 1 * 1_000_000))
    if set_option(None, _OPT_NETWORK_TIMEOUT, ctypes.byref(wait)):
        raise OSError("libldap does not let its timeout be set")
    return Worker(settings, bonsai).answer


class _Unavailable(Exception):
    """The server cannot answer. The text is ours, or that of the library on this side."""


class _AmbiguousError(Exception):
    """More than one entry matches."""


class Worker:
    """Answers one question at a time; keeps the connection of the service account."""

    def __init__(self, settings: dict[str, Any], bonsai: Any) -> None:
        self._bonsai = bonsai
        self._servers: list[tuple[str, int]] = [(host, port) for host, port in settings["servers"]]
        self._tls: str = settings["tls"]
        self._connect_seconds: float = settings["connect_seconds"]
        self._ca: str = settings["ca"]
        self._account: str = settings["account"]  # "": anonymous
        self._account_password = base64.b64decode(settings["account_password"])
        self._attributes: list[str] = settings["attributes"]
        self._service: Any = None  # the connection of the account
        self._alive: dict[tuple[str, int], float] = {}  # monotonic: when a server has last answered
        self._unverified = ssl.create_default_context()
        self._unverified.check_hostname = False
        self._unverified.verify_mode = ssl.CERT_NONE
        self._base_seen = 0.0  # monotonic: when the base was last known to be there
        self._until = 0.0  # monotonic: end of the present question

    def answer(self, question: Answer, seconds: float) -> Answer:
        """See the module."""
        self._until = time.monotonic() + seconds * 0.9  # an answer of ours says more than a death at the deadline
        password = base64.b64decode(question.get("password", ""))
        try:
            match question["op"]:
                case "search":
                    return self._found(self._search_as_account(question["search"]))
                case "bind":
                    return self._bind(question["name"], password, question["search"])
                case "search_bind":
                    entry = self._search_as_account(question["search"])
                    if entry is None:
                        return {"result": "unknown"}
                    return self._bind(str(entry.dn), password, None) | {"attributes": self._values(entry)}
                case _:
                    return self._probe(question)
        except _Unavailable as error:
            return {"result": "unavailable", "why": str(error)}
        except _AmbiguousError:
            return {"result": "ambiguous"}

    # ---- connections ----

    def _connect(self, name: str, password: bytes) -> Any:
        """A connection to the first server that answers, bound. Raises LDAPError as the server's answer to the bind."""
        errors = []
        for server in list(self._servers):
            uri = _uri(server, self._tls)
            client = _client(self._bonsai, uri, self._tls == "starttls", name, password)
            client.set_cert_policy("demand")
            client.set_ca_cert(self._ca)
            client.set_server_chase_referrals(False)
            client.set_password_policy(True)
            try:
                self._greet(server)
                connection, _ = client.connect(timeout=self._left())
            except OSError as error:
                errors.append(f"{uri}: {error}")
            except self._bonsai.LDAPError as error:
                if not self._unreachable(error):
                    raise
                errors.append(f"{uri}: {self._explain(error)}")
            else:
                self._alive[server] = time.monotonic()
                return connection
            self._alive.pop(server, None)
            self._servers.remove(server)  # asked last from now on
            self._servers.append(server)
        raise _Unavailable("; ".join(errors))

    def _greet(self, server: tuple[str, int]) -> None:
        """Where there is another server, find out whether this one lives, and wait no longer than `connect_seconds`.

        libldap would wait without end for one that is silent, and this process would be killed before it could ask the
        other. Passwords are sent later, when libldap has verified the certificate. Raises OSError.
        """
        if len(self._servers) > 1 and time.monotonic() - self._alive.get(server, 0.0) > _SERVER_TRUST:
            greet(*server, self._tls, self._unverified, min(self._connect_seconds, self._left()))

    def _unreachable(self, error: Any) -> bool:
        """Is it worth asking another server? These are the library's own codes, and a server that is overworked."""
        policy = isinstance(error, self._bonsai.PasswordPolicyError)
        return not policy and (error.code <= 0 or error.code in (0x51, 0x55, 51, 52))

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise _Unavailable("too slow")
        return left

    def _account_connection(self) -> Any:
        if self._service is None:
            try:
                self._service = self._connect(self._account, self._account_password)
            except self._bonsai.LDAPError as error:
                who = self._account or "an anonymous client"
                raise _Unavailable(f"the server does not let {who} in: {self._explain(error)}") from None
        return self._service

    def _forget_account_connection(self) -> None:
        connection, self._service = self._service, None
        if connection is not None:
            self._close(connection)

    def _close(self, connection: Any) -> None:
        try:
            connection.close()
        except self._bonsai.LDAPError:
            return

    @contextmanager
    def _bound(self, name: str, password: bytes) -> Iterator[Any]:
        connection = self._connect(name, password)
        try:
            yield connection
        finally:
            self._close(connection)

    # ---- operations ----

    def _bind(self, name: str, password: bytes, search: Answer | None) -> Answer:
        if not name or not password:  # RFC 4513 section 5.1.2: a bind without a password proves nothing
            return {"result": "refused", "reason": "empty"}
        try:
            with self._bound(name, password) as connection:
                if search is None:
                    return {"result": "accepted"}
                entry = self._search(connection, search)
                if entry is None:
                    raise _Unavailable("the user could log in, but does not see an entry of its own")
                return {"result": "accepted", "attributes": self._values(entry)}
        except self._bonsai.LDAPError as error:
            return self._judge(error)

    def _judge(self, error: Any) -> Answer:
        """What the answer to a user's bind means. Only what says something of this user is a refusal."""
        diagnostic = str(error.args[0]) if error.args else ""
        policy = _POLICY_REASONS.get(type(error).__name__)
        if policy is not None:
            return {"result": "refused", "reason": policy}
        for code, words, reason in _389_REASONS:
            if error.code == code and words in diagnostic.lower():
                return {"result": "refused", "reason": reason}
        if error.code == 49:
            found = _AD_CODE.search(diagnostic)
            reason = _AD_REASONS.get(found[1], "bad_credentials") if found else "bad_credentials"
            if reason == "unknown":
                return {"result": "unknown"}
            known = found is not None and found[1] == _AD_USER_EXISTS
            return {"result": "refused", "reason": reason, "known": known}
        if error.code in (32, 48):  # no such entry; an entry without a password
            return {"result": "refused", "reason": "bad_credentials"}
        raise _Unavailable(self._explain(error))

    def _search_as_account(self, search: Answer) -> Any:
        """The one entry, or None. An idle connection may have been closed at the other end: that is tried again."""
        fresh = self._service is None
        try:
            return self._search(self._account_connection(), search)
        except self._bonsai.LDAPError as error:
            self._forget_account_connection()
            if fresh or not self._unreachable(error):
                raise _Unavailable(self._explain(error)) from None
        try:
            return self._search(self._account_connection(), search)
        except self._bonsai.LDAPError as error:
            self._forget_account_connection()
            raise _Unavailable(self._explain(error)) from None

    def _search(self, connection: Any, search: Answer) -> Any:
        """The one entry that matches, or None. Raises LDAPError, _Ambiguous."""
        attributes = self._attributes or ["1.1"]  # RFC 4511 section 4.5.1.8: none
        try:
            entries = connection.search(
                search["base"], search["scope"], search["filter"], attributes, self._left(), sizelimit=1
            )
        except self._bonsai.SizeLimitError:
            raise _AmbiguousError from None
        if len(entries) > 1:
            raise _AmbiguousError
        if entries:
            self._base_seen = time.monotonic()
            return entries[0]
        if search["scope"] != 0 and time.monotonic() - self._base_seen > _BASE_TRUST:
            # bonsai has no words for noSuchObject and for referral: either would look as if nobody was found
            if not connection.search(search["base"], 0, "(objectClass=*)", ["1.1"], self._left()):
                raise _Unavailable(f"there is no {search['base']}, or it is on another server, or it may not be read")
            self._base_seen = time.monotonic()
        return None

    def _found(self, entry: Any) -> Answer:
        if entry is None:
            return {"result": "unknown"}
        return {"result": "found", "dn": str(entry.dn), "attributes": self._values(entry)}

    def _values(self, entry: Any) -> dict[str, list[str]]:
        """The text values of the attributes that were asked for. Raises _Unavailable for others."""
        values = {}
        for name in self._attributes:
            found = list(entry.get(name, []))
            if not all(isinstance(value, str) for value in found):
                raise _Unavailable(f"the attribute {name} is not text")
            values[name] = [value[:1024] for value in found[:8]]
        return values

    def _probe(self, question: Answer) -> Answer:
        """Every server by itself: does it answer, take the account and the search, and refuse somebody unknown?"""
        probed = []
        everything = list(self._servers)
        for server in everything:
            uri = _uri(server, self._tls)
            self._servers = [server]
            self._base_seen = 0.0
            stage, why = "connect", ""
            try:
                if question["search"] is not None and not question["as_user"]:
                    self._account_connection()
                    stage = "search"
                    self._search_as_account(question["search"])
                if question["name"] is not None:
                    stage = "bind"
                    answer = self._bind(question["name"], base64.b64decode(question["password"]), None)
                    why = "" if answer["result"] in ("refused", "unknown") else "anybody may bind as anybody"
                stage = stage if why else ""
            except _Unavailable as error:
                why = str(error)
            except _AmbiguousError:
                stage, why = "search", "the filter matches more than one entry for a name that nobody has"
            self._forget_account_connection()
            probed.append({"uri": uri, "stage": stage, "why": why.removeprefix(f"{uri}: ")})
        self._servers = everything
        return {"result": "probed", "servers": probed}

    def _explain(self, error: Any) -> str:
        """In words. Text of the server is left out; text of the library on this side says why TLS failed."""
        if error.code > 0 and error.code not in (0x51, 0x55):
            return f"{_RESULTS.get(error.code, 'result code')} ({error.code})"
        text = str(error.args[0]) if error.args else ""
        return " ".join(text.split()).rstrip(". ")[:300] or f"the library failed with {error.code}"


def _uri(server: tuple[str, int], tls: str) -> str:
    host, port = server
    return f"{'ldaps' if tls == 'implicit' else 'ldap'}://{f'[{host}]' if ':' in host else host}:{port}"


def _client(bonsai: Any, uri: str, starttls: bool, name: str, password: bytes) -> Any:
    class Client(bonsai.LDAPClient):  # type: ignore[misc] # bonsai is imported on demand
        """Passwords are octets (RFC 4511 section 4.2); bonsai itself only lets them be text."""

        @property
        def credentials(self) -> dict[str, Any]:
            return {"user": name, "password": password, "realm": None, "authz_id": None, "keytab": None}

    return Client(uri, starttls)
