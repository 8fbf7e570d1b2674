"""From the section directories to directories that can be asked. Optional libraries are imported on demand."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_directories import Ldap
from popproxy.config.secret import resolve_secret
from popproxy.directories.entry import Directory
from popproxy.directories.ldap import WORKER, LdapDirectory, worker_settings
from popproxy.directories.measured import Measured
from popproxy.errors import ConfigError, Problem, Unavailable
from popproxy.observe.metrics import Metrics
from popproxy.state.helper import Helper, Started, start_helper

INSTALL_LDAP = (
    "pip install 'popproxy[ldap]' (it is built from source: libldap-dev, libsasl2-dev, python3-dev and gcc are needed)"
)


@dataclass(frozen=True, slots=True)
class StartedDirectories:
    """What root has started and read for the directories, by their names."""

    helpers: dict[str, Started] = field(default_factory=dict)

    def close(self) -> None:
        """End what was started."""
        for helper in self.helpers.values():
            helper.close()


def start_directories(loaded: Loaded) -> StartedDirectories:
    """Read secrets and start helper processes, while root may. Raises ConfigError; nothing is left running then."""
    started = StartedDirectories()
    problems: list[Problem] = []
    for name, directory in loaded.config.directories.items():
        if directory.ldap is not None:
            try:
                started.helpers[name] = start_ldap(loaded.config, name, directory.ldap, directory.connections)
            except ConfigError as error:
                problems += error.problems
            except Unavailable as error:
                what = f"the LDAP client does not start: {error}"
                problems.append(Problem(str(loaded.path), f"directories.{name}.ldap", what, INSTALL_LDAP))
    if problems:
        started.close()
        raise ConfigError(problems)
    return started


def start_ldap(config: Config, name: str, ldap: Ldap, workers: int) -> Started:
    """The helper for one LDAP directory. Raises ConfigError for its secret, Unavailable if it does not start."""
    key = f"directories.{name}.ldap.account.password"
    password = None if ldap.account is None else resolve_secret(ldap.account.password, key)
    settings = worker_settings(ldap, password, str(ldap.ca or system_authorities()), config.timeouts.connect)
    user = config.process.user if os.geteuid() == 0 else None
    return start_helper(WORKER, settings, workers=workers, user=user, group=config.process.group)


def system_authorities() -> str:
    """The file of CA certificates that this machine trusts."""
    return ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"


class DirectoryParts:
    """The directories of the configuration, by name."""

    def __init__(
        self, config: Config, started: StartedDirectories, metrics: Metrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._helpers: list[Helper] = []
        self.directories: Mapping[str, Directory] = {}
        made: dict[str, Directory] = {}
        for name, directory in config.directories.items():
            if directory.ldap is not None:
                helper = Helper(
                    name, started.helpers[name], loop, workers=directory.connections, queue_limit=directory.queue,
                    deadline=directory.deadline,
                )  # fmt: skip
                self._helpers.append(helper)
                metrics.watch_executor(name, helper)
                made[name] = Measured(LdapDirectory(name, directory.ldap, helper), metrics)
        self.directories = made

    def close(self) -> None:
        """End helper processes."""
        for helper in self._helpers:
            helper.close()
