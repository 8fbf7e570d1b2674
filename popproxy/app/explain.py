"""What would become of somebody who logs in, step by step, by the code that decides about sessions. Nobody logs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cached_property, partial
from typing import Literal

from popproxy.app.chain import KdcJudge, password_judges
from popproxy.app.explain_route import explain_route
from popproxy.app.explanation import (
    Ended,
    Explained,
    Explanation,
    Verdict,
    hold_in_words,
    link_in_words,
    login_in_words,
    servers_in_words,
    taken_for,
    way_in_words,
)
from popproxy.app.kerberos import mapping_rules, principal_map, realm_rules
from popproxy.app.stand_ins import SHOWN, NobodyAsked, NoSources, NoTokens, SilentDirectory
from popproxy.auth.accounts import Accounts
from popproxy.auth.chain import Chain
from popproxy.auth.names import NameRefused, canonical, vet, vet_name
from popproxy.auth.policy import Policy
from popproxy.auth.users_file import UsersFile
from popproxy.backend.balancer import State
from popproxy.backend.discovery import srv_name
from popproxy.backend.kerberos_logins import KerberosLogins
from popproxy.backend.pool import Pool
from popproxy.backend.strategies import logins_for
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.units import quote
from popproxy.errors import ConfigError, PopproxyError
from popproxy.kerberos.mapping import Key, PrincipalMap, RealmRule, Rule
from popproxy.routing.places import Place
from popproxy.routing.router import Router
from popproxy.sasl.credentials import Credential, GssapiCredential, KpopCredential, PasswordCredential
from popproxy.session.tickets import user_of
from popproxy.state.executors import BoundedExecutor
from popproxy.state.order_file import read_orders
from popproxy.state.orders import Orders
from popproxy.types import Identity, Mechanism, Secret, Step
from popproxy.vault.keys import vault_key
from popproxy.vault.record import Record
from popproxy.vault.store import Vault

FORWARDED = "kerberos-forwarded"

_UNKNOWN = Secret("")
"""In place of passwords, which nobody is asked for here."""


class NoSuchListener(PopproxyError):
    """The configuration has no listener of that name. The text names those that it has."""


def explain(
    loaded: Loaded, name: str, listener: str | None = None, ask: Callable[[str], Place] | None = None
) -> Explanation:
    """What would become of `name`, a principal or a user, at `listener` or the first one that may be meant.

    Reads the files that the configuration names; asks neither KDC nor backend, and the directories of `routing` only by
    `ask` (raises Unavailable). Raises ConfigError, VaultError, OSError for files that cannot be used, and
    NoSuchListener.
    """
    return _Explainer(loaded, name, ask).run(listener)


class _Explainer:
    def __init__(self, loaded: Loaded, name: str, ask: Callable[[str], Place] | None) -> None:
        self._ask = ask
        self._config: Config = loaded.config
        kind, why = taken_for(name, loaded.config)
        self._found = Explanation(name, kind)
        self._say("name", Step(f"{name if name.isprintable() else quote(name)} is {why}"))

    def run(self, wanted: str | None) -> Explanation:
        found = self._found
        try:
            number, listener = self._listener(wanted)
            who, credential = self._ticket(listener) if found.kind == "principal" else self._password(number, listener)
            found.mailbox = who.user
            self._say("mailbox", Step(who.user))
            self._policy(listener, who)
            self._account(who)
            self._backend(listener, who, credential)
            found.verdict = "let in"
            found.result = self._result(who)
            self._hold(who)
        except Ended as end:
            found.verdict, found.result = end.verdict, end.result
        return found

    # ---- who ----

    def _listener(self, wanted: str | None) -> tuple[int, Listener]:
        takes = _takes_tickets if self._found.kind == "principal" else _takes_passwords
        listeners = list(enumerate(self._config.listeners))
        if wanted is None:
            number, listener = next((pair for pair in listeners if takes(pair[1])), listeners[0])
        else:
            named = [pair for pair in listeners if pair[1].name == wanted]
            if not named:
                names = ", ".join(one.name for _, one in listeners)
                raise NoSuchListener(f"there is no listener {wanted}; there are {names}")
            number, listener = named[0]
        self._found.listener = listener.name
        key = ("listeners", number)
        what = "tickets" if self._found.kind == "principal" else "passwords"
        if not takes(listener):
            raise self._ended("listener", f"{listener.name} takes no {what}", key, "not set up")
        ways = f" by {'KPOP' if listener.protocol == 'kpop' else 'GSSAPI'}" if what == "tickets" else ""
        others = [one.name for _, one in listeners if takes(one) and one is not listener]
        more = f" (so {'do' if len(others) > 1 else 'does'} {', '.join(others)})" if others else ""
        self._say("listener", Step(f"{listener.name} takes {what}{ways}{more}", key))
        return number, listener

    def _ticket(self, listener: Listener) -> tuple[Identity, Credential]:
        principal = self._found.name
        principals, _ = self._mapping(listener)
        for step in principals.map(principal).steps:
            self._say("identity", step)
        if self._found.steps[-1].step.outcome == "refused":
            raise self._refused()
        kpop = listener.protocol == "kpop"
        ticket = (
            KpopCredential(principal, "", evidence=SHOWN) if kpop else GssapiCredential(principal, "", context=SHOWN)
        )
        try:
            user = user_of(ticket, principals, self._vet_name)
        except NameRefused as refused:
            raise self._ended("identity", f"the mailbox cannot be a name here ({refused.reason})") from None
        return Identity(user, principal, ticket.mechanism, principal=principal), ticket

    def _password(self, number: int, listener: Listener) -> tuple[Identity, Credential]:
        rules = self._config.authentication
        credential = PasswordCredential(Mechanism.USER, self._found.name, Secret("?"))
        try:
            user = vet(credential, rules.default_domain, rules.case)
        except NameRefused as refused:
            raise self._ended("identity", f"that cannot be a name ({refused.reason})") from None
        self._say("identity", Step(f"the user {user}, if the password is right"))
        kdc = None
        key: Key = ("listeners", number, "authenticate")
        checks = listener.authenticate
        for domain, others in rules.domains.items():
            if user.lower().endswith(f"@{domain.lower()}"):
                key, checks = ("authentication", "domains", domain), others
        if "kerberos" in checks:
            principals, realms = self._mapping(listener)
            kdc = KdcJudge(NobodyAsked(), principals, realms)
        directories = {name: SilentDirectory(name, one.kind) for name, one in self._config.directories.items()}
        judges = password_judges(
            checks,
            rules,
            users=self._users,
            kdc=kdc,
            executor=self._executor,
            directories=directories,
            digests={},
        )
        for place, prospect in enumerate(Chain(judges).prospects(user)):
            for step in (*prospect.before, prospect.step):
                self._say("password", step if step.key else replace(step, key=(*key, place)))
            if prospect.identity is not None:
                return prospect.identity, credential
            if prospect.step.outcome == "refused":
                raise self._refused()
        raise self._ended("password", "nobody is left to decide about the password", key)

    def _policy(self, listener: Listener, who: Identity) -> None:
        """As for a client that uses USER and PASS, or a ticket; its address is not known here."""
        for number, rule in enumerate(self._config.policy):
            key, today = ("policy", number), date.today()
            if not Policy([rule], listener.name, self._canonical).concerns(who.mechanism, who.user):
                continue
            if not rule.ended(today):
                self._say("policy", Step(f"{who.mechanism} can be used until {rule.until}", key))
            elif rule.except_networks:
                self._say("policy", Step(f"{who.mechanism} can be used from the networks that it names", key, "open"))
            else:
                raise self._ended("policy", f"{who.mechanism} cannot be used any more", key)

    def _account(self, who: Identity) -> None:
        section = self._config.users
        if self._users is None or section is None:
            self._say("account", Step("there is no users file that could disable it", outcome="passed"))
            return
        key = ("users", "file")
        match Accounts(self._users, self._executor).state(who.user):
            case "unknown":
                self._say("account", Step(f"not in {section.file}, so not disabled", key, "passed"))
            case "open":
                self._say("account", Step(f"open in {section.file}", key))
            case "disabled" if who.proven:
                raise self._ended("account", f"disabled in {section.file}", key)
            case _:
                self._say("account", Step(f"disabled in {section.file}, but only the server decides here", key, "open"))

    def _hold(self, who: Identity) -> None:
        """An operator's hold ends all logins, but where they would go is worth knowing."""
        hold = self._orders.hold(who.user)
        if hold is not None:
            raise self._ended("hold", hold_in_words(hold))

    # ---- where ----

    def _backend(self, listener: Listener, who: Identity, credential: Credential) -> None:
        router, move = Router(self._config, self._canonical), self._orders.moves.get(who.user)
        route = explain_route(who.user, router, self._config.routing.directories, move, self._ask, self._say)
        found, config = self._found, self._config.pools[route.pool]
        found.pool, found.backend_user = route.pool, route.backend_user
        pool = Pool(route.pool, config, None if config.master is None else _UNKNOWN, tokens=NoTokens())
        key = ("pools", route.pool)
        self._say("pool", Step(f"{pool.name}, where the user is {route.backend_user}", key))
        if pool.config.srv is not None:
            text = f"those that the SRV records of {srv_name(pool.config.srv, pool.config.tls)} name"
            self._say("server", Step(text, (*key, "srv"), "open"))
        for backend in pool.backends:
            closed = self._orders.servers.get((pool.name, backend.label))
            pool.order(backend, State.UP if closed is None else State(closed.state))
        namer = "an operator has put the user" if who.user in self._orders.moves else "the directory says"
        for backend, order in servers_in_words(pool, route.backend_user, route.server, namer):
            outcome: Literal["done", "passed"] = "done" if backend.member.order is State.UP else "passed"
            where = (*key, "servers", pool.backends.index(backend))
            self._say("server", Step(f"{backend.label}, {order}", where, outcome))
        if not any(one.step.outcome in ("done", "open") for one in found.steps if one.stage == "server"):
            raise self._ended("server", "operators have closed the servers for this user", key)
        for step in way_in_words(pool.config, self._config, key):
            self._say("link", step)
        self._say("link", Step(link_in_words(pool), (*key, "tls")))
        self._strategies(listener, pool, who, credential)

    def _strategies(self, listener: Listener, pool: Pool, who: Identity, credential: Credential) -> None:
        found, key = self._found, ("pools", pool.name, "login")
        skipped: dict[str, str] = {}
        logins = logins_for(
            pool, found.backend_user, who, credential, partial(self._stored, who.user), self._tickets(listener),
            skipped.__setitem__,
        )  # fmt: skip
        usable = iter(logins)
        for place, strategy in enumerate(pool.config.login):
            if strategy in skipped:
                self._say("login", Step(f"{strategy}: {skipped[strategy]}", (*key, place), "passed"))
                continue
            text = f"{strategy}: {login_in_words(next(usable), pool)}"
            if strategy == FORWARDED:
                self._say("login", Step(text, (*key, place), "open"))
            else:
                self._say(
                    "login",
                    Step(f"{text}, if what is above cannot be used there" if found.strategy else text, (*key, place)),
                )
                found.strategy = found.strategy or strategy
        if not logins:
            raise self._ended("login", f"no way to log in at the pool {pool.name}", key, "not set up")
        found.strategy = found.strategy or FORWARDED

    def _tickets(self, listener: Listener) -> KerberosLogins | None:
        if self._config.kerberos is None:
            return None
        principals, _ = self._mapping(listener)
        return KerberosLogins(NoSources(), partial(principals.principal_of, canonical=self._canonical))

    def _stored(self, user: str) -> Record | None:
        return None if self._vault is None else self._vault.record(user)

    # ---- pieces, made when they are needed ----

    @cached_property
    def _users(self) -> UsersFile | None:
        section = self._config.users
        return None if section is None else UsersFile.load(section.file, self._canonical)

    @cached_property
    def _vault(self) -> Vault | None:
        section = self._config.vault
        return None if section is None else Vault.open(section.file, vault_key(section))

    @cached_property
    def _orders(self) -> Orders:
        directory = self._config.process.state_directory
        if directory is None:
            return Orders()
        try:
            return read_orders(directory)
        except ConfigError as error:
            for problem in error.problems:
                text = f"the orders of operators are not known: {problem.where} {problem.what}"
                self._say("orders", Step(text, ("process", "state_directory"), "open"))
            return Orders()

    @cached_property
    def _executor(self) -> BoundedExecutor:
        return BoundedExecutor("hashes", 1, 1, 1.0)

    def _mapping(self, listener: Listener) -> tuple[PrincipalMap, list[RealmRule]]:
        kerberos = self._config.kerberos
        assert kerberos is not None
        realms = realm_rules(kerberos, kerberos.at(listener))
        return principal_map(self._config, kerberos.at(listener), self._rules), realms

    @cached_property
    def _rules(self) -> list[Rule]:
        assert self._config.kerberos is not None
        return mapping_rules(self._config.kerberos)

    def _canonical(self, name: str) -> str:
        return canonical(name, self._config.authentication.default_domain, self._config.authentication.case)

    def _vet_name(self, name: str) -> str:
        return vet_name(name, self._config.authentication.default_domain, self._config.authentication.case)

    # ---- saying it ----

    def _say(self, stage: str, step: Step) -> None:
        self._found.steps.append(Explained(stage, step))

    def _ended(self, stage: str, why: str, key: Key = (), verdict: Verdict = "refused") -> Ended:
        """Says a last step; to be raised."""
        self._say(stage, Step(f"refused: {why}", key, "refused"))
        return Ended(verdict, why)

    def _refused(self) -> Ended:
        """The last step has said why; to be raised."""
        return Ended("refused", self._found.steps[-1].step.text.removeprefix("refused: "))

    def _result(self, who: Identity) -> str:
        found = self._found
        proof = "ticket" if found.kind == "principal" else "password"
        judge = "" if who.proven else " by the server"
        way = f"{found.backend_user} by {found.strategy}"
        return f"let in at pool {found.pool} as {way}, if the {proof} is accepted{judge}"


def _takes_tickets(listener: Listener) -> bool:
    return listener.gssapi or listener.protocol == "kpop"


def _takes_passwords(listener: Listener) -> bool:
    return listener.protocol == "pop3"
