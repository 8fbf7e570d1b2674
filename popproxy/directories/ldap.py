"""LDAP and Active Directory: what is asked, and what the answers mean. The asking itself is done by ldap_worker."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any, Final

from popproxy.config.model_directories import Ldap
from popproxy.config.units import parse_server
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.directories.placeholders import can_fill, escape_dn, escape_filter, fill, may_be_principal
from popproxy.errors import Unavailable
from popproxy.observe.logs import get_logger
from popproxy.state.helper import Helper
from popproxy.types import Address, AuthFailure, Location, Secret, Visit

WORKER: Final = "popproxy.directories.ldap_worker"
DEFAULT_PORTS: Final = {"starttls": 389, "implicit": 636, "none": 389}
_SCOPES: Final = {"base": 0, "one": 1, "subtree": 2}
_NOBODY: Final = "popproxy-check-nobody"

log = get_logger("ldap")


def servers_of(config: Ldap) -> list[Address]:
    """The servers, each with its port."""
    return [Address(server.host, server.port or DEFAULT_PORTS[config.tls]) for server in config.servers]


def worker_settings(config: Ldap, password: Secret | None, ca: str, connect_seconds: float) -> dict[str, Any]:
    """What ldap_worker must know. `password` is the account's, `ca` a file of CA certificates."""
    return {
        "servers": [(address.host, address.port) for address in servers_of(config)],
        "tls": config.tls,
        "ca": ca,
        "connect_seconds": connect_seconds,
        "account": config.account.dn if config.account is not None else "",
        "account_password": base64.b64encode(b"" if password is None else password.reveal()).decode(),
        "attributes": config.attributes.wanted,
    }


class LdapDirectory:
    """See Directory. Every value that comes from a client is escaped, and every answer must speak of one user."""

    kind = "ldap"

    def __init__(self, name: str, config: Ldap, helper: Helper) -> None:
        self.name = name
        self._config = config
        self._helper = helper

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """Bind as the user. See Directory."""
        if not password:
            return Refused(AuthFailure.EMPTY)
        if not self._can_have(user):
            return Refused(stranger=True)
        config = self._config
        octets = base64.b64encode(password.reveal()).decode()
        if config.user_dn is None:
            return self._verdict(
                await self._helper.ask({"op": "search_bind", "search": self._search(user), "password": octets}), user
            )
        name = bind_name(config.user_dn, user)
        if name is None:
            return Refused(stranger=True)
        search = self._search(user) if config.attributes.wanted else None
        return self._verdict(
            await self._helper.ask({"op": "bind", "name": name, "password": octets, "search": search}), user
        )

    async def find(self, user: str) -> Answer:
        """Search by the service account. See Directory."""
        if not self._can_have(user):
            return Refused(stranger=True)
        return self._verdict(await self._helper.ask({"op": "search", "search": self._search(user)}), user)

    async def probe(self) -> list[dict[str, str]]:
        """For each server ``{uri, stage, why}``; stage is empty if all is well, else connect, search or bind."""
        config = self._config
        question: dict[str, Any] = {"op": "probe", "name": None, "search": None, "as_user": config.user_dn is not None}
        if config.user_dn is None or config.account is not None:
            question |= {"search": self._search(_NOBODY), "as_user": False}
        if config.user_dn is not None:
            password = secrets.token_hex(16).encode()
            question |= {"name": bind_name(config.user_dn, _NOBODY), "password": base64.b64encode(password).decode()}
        answer = await self._helper.ask(question)
        return list(answer["servers"])

    def _can_have(self, user: str) -> bool:
        templates = (self._config.user_dn, self._config.base, self._config.filter)
        return all(can_fill(template, user) for template in templates if template is not None)

    def _search(self, user: str) -> dict[str, Any]:
        config = self._config
        if config.base is None or config.filter is None:
            assert config.user_dn is not None  # the rules of the configuration see to that
            return {"base": fill(config.user_dn, user, escape_dn), "filter": "(objectClass=*)", "scope": 0}
        return {
            "base": fill(config.base, user, escape_dn), "filter": fill(config.filter, user, escape_filter),
            "scope": _SCOPES[config.scope],
        }  # fmt: skip

    def _verdict(self, answer: Mapping[str, Any], user: str) -> Answer:
        match answer["result"]:
            case "accepted" | "found":
                return self._entry(answer.get("attributes", {}))
            case "unknown":
                return Refused(stranger=True)
            case "refused":
                reason = AuthFailure(answer["reason"])
                searched = self._config.user_dn is None
                vague = reason is AuthFailure.BAD_CREDENTIALS and not searched and not answer.get("known", False)
                return Refused(reason, stranger=vague)
            case "ambiguous":
                log.error("more than one entry matches", directory=self.name, user=user)
                return Refused(AuthFailure.AMBIGUOUS)
            case _:
                raise Unavailable(f"{self.name}: {answer['why']}", "directory")

    def _entry(self, values: Mapping[str, list[str]]) -> Entry:
        names = self._config.attributes

        def one(name: str | None) -> str | None:
            found = values.get(name, []) if name is not None else []
            if len(found) > 1:
                raise Unavailable(f"{self.name}: the attribute {name} has {len(found)} values", "directory")
            if found and not found[0].isprintable():
                raise Unavailable(f"{self.name}: what the attribute {name} holds is not a name", "directory")
            return found[0] if found and found[0] else None

        server = one(names.server)
        location = Location(one(names.pool), self._address(server), one(names.backend_user))
        return Entry(one(names.mailbox), None if location == Location() else location)

    def _address(self, text: str | None) -> Address | None:
        try:
            return None if text is None else parse_server(text)
        except ValueError:
            what = f"{self.name}: what the attribute {self._config.attributes.server} holds is not a server"
            raise Unavailable(what, "directory") from None


def bind_name(template: str, user: str) -> str | None:
    """What `user` binds as. None if nobody can be called so.

    A template without ``=`` is no distinguished name: Active Directory takes logon names there, which have no escapes.
    """
    if "=" in template:
        return fill(template, user, escape_dn)
    return fill(template, user, str) if may_be_principal(user) else None
