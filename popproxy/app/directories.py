"""From the section directories to directories that can be asked. Optional libraries are imported on demand."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from popproxy.auth.stored_hash import HashJudge
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_directories import AuthHttp, Ldap, Pam, Sql
from popproxy.config.model_directories import Directory as DirectorySection
from popproxy.config.model_routing import Routing
from popproxy.config.secret import resolve_secret
from popproxy.directories import pam as pam_client
from popproxy.directories.cached import CachedDirectory, Kept
from popproxy.directories.entry import DigestJudge, Directory
from popproxy.directories.ldap import WORKER, LdapDirectory, worker_settings
from popproxy.directories.measured import Measured, MeasuredDigests, MeasuredFinder
from popproxy.directories.pam_worker import DIRECTORIES
from popproxy.errors import ConfigError, PopproxyError, Problem, Unavailable
from popproxy.observe.metrics import Metrics
from popproxy.routing.places import Places
from popproxy.state.executors import BoundedExecutor
from popproxy.state.gate import Gate
from popproxy.state.helper import Helper, Started, start_helper
from popproxy.state.remembered import Remembered
from popproxy.types import Secret

if TYPE_CHECKING:
    from popproxy.directories.auth_http import AuthHttpDirectory
    from popproxy.directories.sql import Engine, SqlDirectory
    from popproxy.net.header_http import HeaderHttp

INSTALL_SQL = "pip install 'popproxy[sql]'"
INSTALL_LDAP = (
    "pip install 'popproxy[ldap]' (it is built from source: libldap-dev, libsasl2-dev, python3-dev and gcc are needed)"
)


@dataclass(frozen=True, slots=True)
class Service:
    """A web service that can be asked, and the headers with secrets that it wants."""

    http: HeaderHttp
    keys: dict[str, Secret]


@dataclass(frozen=True, slots=True)
class StartedDirectories:
    """What root has started and read for the directories, by their names."""

    helpers: dict[str, Started] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)

    def close(self) -> None:
        """End what was started."""
        for helper in self.helpers.values():
            helper.close()


def start_directories(loaded: Loaded) -> StartedDirectories:
    """Read secrets, import libraries and start helper processes, while root may. Raises ConfigError.

    Nothing is left running then.
    """
    started = StartedDirectories()
    problems: list[Problem] = []
    for name, directory in loaded.config.directories.items():
        try:
            if directory.ldap is not None:
                started.helpers[name] = start_ldap(loaded.config, name, directory.ldap, directory.connections)
            if directory.pam is not None:
                started.helpers[name] = start_pam(directory.pam, directory.connections)
            if directory.sql is not None:
                started.engines[name] = open_sql(loaded.config, name, directory.sql, directory.connections)
            if directory.http is not None:
                started.services[name] = open_service(loaded.config, name, directory.http, directory.connections)
        except ConfigError as error:
            problems += error.problems
        except CannotStart as error:
            problems.append(Problem(str(loaded.path), f"directories.{name}", str(error), error.cure))
    if problems:
        started.close()
        raise ConfigError(problems)
    return started


class CannotStart(PopproxyError):
    """The client of a directory cannot be used on this machine; `cure` says what to do."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what)
        self.cure = cure


def start_ldap(config: Config, name: str, ldap: Ldap, workers: int) -> Started:
    """The helper for one LDAP directory. Raises ConfigError for its secret, and CannotStart."""
    key = f"directories.{name}.ldap.account.password"
    password = None if ldap.account is None else resolve_secret(ldap.account.password, key)
    settings = worker_settings(ldap, password, str(ldap.ca or system_authorities()), config.timeouts.connect)
    user = config.process.user if os.geteuid() == 0 else None
    try:
        return start_helper(WORKER, settings, workers=workers, user=user, group=config.process.group)
    except Unavailable as error:
        raise CannotStart(f"the LDAP client does not start: {error}", INSTALL_LDAP) from None


def start_pam(pam: Pam, workers: int) -> Started:
    """The helper for PAM. It keeps the rights that we have: only root may judge other people's passwords.

    Raises CannotStart.
    """
    try:
        return start_helper(pam_client.WORKER, pam_client.worker_settings(pam), workers=workers)
    except Unavailable as error:
        cure = f"describe the service in {DIRECTORIES[0]}/{pam.service}, as config/README.md has it"
        raise CannotStart(f"PAM does not start: {error}", cure) from None


def open_sql(config: Config, name: str, sql: Sql, connections: int) -> Engine:
    """The engine for one database. Raises ConfigError for its secret, and CannotStart."""
    try:
        from popproxy.directories.sql import open_engine  # noqa: PLC0415 - an optional library
    except ImportError as error:
        raise CannotStart(f"the SQL client is not installed: {error}", INSTALL_SQL) from None
    password = None if sql.password is None else resolve_secret(sql.password, f"directories.{name}.sql.password")
    try:
        return open_engine(sql, password, connections, config.timeouts.connect)
    except ImportError as error:
        raise CannotStart(f"the SQL client is not installed: {error}", INSTALL_SQL) from None
    except UnicodeDecodeError:
        raise CannotStart("its password is not UTF-8", "correct password:") from None
    except OSError as error:  # ssl.SSLError is one
        raise CannotStart(f"{sql.ca} cannot be used: {error.strerror or error}", "correct ca:") from None


def open_service(config: Config, name: str, http: AuthHttp, connections: int) -> Service:
    """The web service of one directory. Raises ConfigError for secrets, and CannotStart."""
    import popproxy.directories.auth_http  # noqa: F401, PLC0415 - large; what it needs later is imported here
    from popproxy.net.header_http import HeaderHttp  # noqa: PLC0415

    keys: dict[str, Secret] = {}
    for header, source in http.headers.items():
        keys[header] = resolve_secret(source, f"directories.{name}.http.headers.{header}")
        if any(octet < 32 or octet == 127 for octet in keys[header].reveal()):
            raise CannotStart(f"the value of the header {header} has control characters", "write it in one line")
    target = http.target
    try:
        context = ssl.create_default_context(cafile=str(http.ca) if http.ca else None) if target.secure else None
    except OSError as error:  # ssl.SSLError is one
        raise CannotStart(f"{http.ca} cannot be used: {error.strerror or error}", "correct ca:") from None
    if context is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    return Service(HeaderHttp(target.url, target.socket, context, connections, config.timeouts.connect), keys)


def system_authorities() -> str:
    """The file of CA certificates that this machine trusts."""
    return ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"


class DirectoryParts:
    """The directories of the configuration, by name."""

    def __init__(
        self, config: Config, started: StartedDirectories, metrics: Metrics, loop: asyncio.AbstractEventLoop,
        executor: BoundedExecutor, since: Callable[[str], float],
    ) -> None:  # fmt: skip
        """`since`: what was said of a user before that (seconds since 1970) does not count."""
        self.directories: dict[str, Directory] = {}
        self.digests: dict[str, DigestJudge] = {}
        self._helpers: list[Helper] = []
        self._linked: list[SqlDirectory | AuthHttpDirectory] = []  # that have connections of the event loop
        for name, directory in config.directories.items():
            if directory.ldap is not None or directory.pam is not None:
                helper = Helper(
                    name, started.helpers[name], loop, workers=directory.connections, queue_limit=directory.queue,
                    deadline=directory.deadline,
                )  # fmt: skip
                self._helpers.append(helper)
                metrics.watch_executor(name, helper)
                if directory.ldap is not None:
                    self.directories[name] = Measured(LdapDirectory(name, directory.ldap, helper), metrics)
                elif directory.pam is not None:
                    self.directories[name] = Measured(pam_client.PamDirectory(name, directory.pam, helper), metrics)
            elif directory.sql is not None:
                from popproxy.directories.sql import SqlDirectory  # noqa: PLC0415 - an optional library

                gate = self._gate(name, directory, metrics)
                database = SqlDirectory(name, directory.sql, started.engines[name], gate)
                self._linked.append(database)
                self.directories[name] = HashJudge(MeasuredFinder(database, metrics), executor)
            elif directory.http is not None:
                from popproxy.directories.auth_http import AuthHttpDirectory  # noqa: PLC0415 - large

                gate, opened = self._gate(name, directory, metrics), started.services[name]
                service = AuthHttpDirectory(name, directory.http, opened.keys, opened.http, gate)
                self._linked.append(service)
                self.directories[name] = Measured(service, metrics)
                self.digests[name] = MeasuredDigests(service, service, metrics)
        self._cache(config, metrics, since)

    def _cache(self, config: Config, metrics: Metrics, since: Callable[[str], float]) -> None:
        """Those that the configuration wants to be asked less."""
        for name, directory in config.directories.items():
            if directory.cache and name in self.directories:
                asked, remembered = self.directories[name], Remembered[Kept](directory.cache)
                whence = directory.asks_whence
                self.directories[name] = CachedDirectory(
                    asked, remembered, metrics.auth_cache, whence=whence, since=since
                )

    def _gate(self, name: str, directory: DirectorySection, metrics: Metrics) -> Gate:
        gate = Gate(name, directory.connections, directory.queue, directory.deadline)
        metrics.watch_executor(name, gate)
        return gate

    def places(self, routing: Routing) -> Places | None:
        """Those that say where mail is, if there are any."""
        finders = [self.directories[name] for name in routing.directories]
        return Places(finders, routing.cache, routing.stale) if finders else None

    async def hang_up(self) -> None:
        """Give back the connections that only the event loop can close."""
        for directory in self._linked:
            await directory.close()

    def close(self) -> None:
        """End helper processes."""
        for helper in self._helpers:
            helper.close()
