"""Checks of the directories: can each be reached, is its TLS good, does it let popproxy in, does the search run?"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from functools import partial

from popproxy.app.checks.databases import check_sql
from popproxy.app.checks.finding import Finding, misconfigured, ok, problem, warning
from popproxy.app.checks.pam import check_pam
from popproxy.app.checks.permissions import account
from popproxy.app.checks.services import check_service
from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.directories import CannotStart, start_ldap
from popproxy.config.model import Config
from popproxy.config.model_directories import Ldap
from popproxy.config.secret import resolve_secret
from popproxy.directories.ldap import LdapDirectory, servers_of
from popproxy.directories.ldap_greeting import NoStartTls, greet
from popproxy.errors import ConfigError, Unavailable
from popproxy.state.helper import Helper
from popproxy.types import Address

GREET_SECONDS = 5.0
"""Longest time to connect to one server and to shake hands; all are asked at once."""
PROBE_SECONDS = 7.0
"""Longest time for what comes after that."""
_CA = "give the CA certificate of the directory as ca:"
_CERTIFICATE_CURES = {
    9: "correct the clock of this machine",
    10: "renew the certificate of the directory",
    62: "write the name that stands in its certificate in servers:",
    64: "write the name that stands in its certificate in servers:",
}
"""By OpenSSL's X509_V_ERR_ number."""
_NOT_CONNECTED = {
    errno.ECONNREFUSED: ("refuses connections", "start it, or correct name and port in servers:"),
    errno.EHOSTUNREACH: ("cannot be reached", "correct the address in servers:, or the routes of this machine"),
    errno.ENETUNREACH: ("cannot be reached", "correct the address in servers:, or the routes of this machine"),
    errno.ECONNRESET: ("closed the connection", "is this an LDAP server, and is tls: right?"),
}
_STAGES = {
    "connect": ("{uri} does not let popproxy in: {why}", "correct account: and its password, or give one"),
    "search": ("{uri} cannot be searched: {why}", "correct base: and filter:, or what the account may read"),
    "bind": ("users cannot bind at {uri}: {why}", "correct user_dn:, or what the server asks for"),
}


async def check_directories(config: Config, *, offline: bool) -> list[Finding]:
    """Findings about every directory. Asks for a user that nobody is called, with a password made up on the spot."""
    checks = []
    for name, directory in config.directories.items():
        if directory.ldap is not None:
            checks.append(_check_ldap(config, name, directory.ldap, offline))
        elif directory.sql is not None:
            checks.append(check_sql(config, name, directory.sql, offline=offline))
        elif directory.http is not None:
            checks.append(check_service(config, name, directory.http, offline=offline))
        elif directory.pam is not None:
            checks.append(check_pam(name, directory.pam, offline=offline))
    return [finding for findings in await asyncio.gather(*checks) for finding in findings]


async def _check_ldap(config: Config, name: str, ldap: Ldap, offline: bool) -> list[Finding]:
    area = f"directory {name}"
    if ldap.account is not None:
        try:
            resolve_secret(ldap.account.password, f"directories.{name}.ldap.account.password")
        except ConfigError as error:
            return misconfigured(area, error)
    if offline:
        return []
    greetings = await asyncio.gather(*(_greet(area, ldap, server, config) for server in servers_of(ldap)))
    findings = list(greetings)
    if any(finding.level == "ok" for finding in greetings) and _user_exists(config):
        findings += await _probe(area, config, name, ldap)
    return findings


def _user_exists(config: Config) -> bool:
    """The helper process becomes that user; if there is none, that is told elsewhere."""
    return config.process.user is None or account(config.process.user) is not None


async def _greet(area: str, ldap: Ldap, server: Address, config: Config) -> Finding:
    try:
        context = ssl.create_default_context(cafile=str(ldap.ca) if ldap.ca else None)
    except (OSError, ssl.SSLError) as error:
        return problem(area, f"the CA file {ldap.ca} cannot be used: {error.strerror or error}", "correct ca:")
    seconds = config.timeouts.connect
    try:
        async with asyncio.timeout(GREET_SECONDS):
            version = await in_daemon_thread(partial(greet, server.host, server.port, ldap.tls, context, seconds))
    except ssl.SSLCertVerificationError as error:
        text = f"{server} has a certificate that is refused: {error.verify_message.rstrip('.')}"
        return problem(area, text, _CERTIFICATE_CURES.get(error.verify_code, _CA))
    except ssl.SSLError as error:
        return problem(area, f"{server} fails in TLS: {error.reason or error}", "is tls: right for this port?")
    except NoStartTls:
        return problem(area, f"{server} refuses StartTLS", "give it a certificate, or write tls: implicit")
    except TimeoutError:
        cure = "is it up, and is tls: right for this port?"
        return problem(area, f"{server} does not answer within {seconds:g} s (timeouts.connect)", cure)
    except socket.gaierror as error:
        return problem(area, f"{server} has a name that does not resolve: {error.strerror}", "correct servers:")
    except OSError as error:
        reason, cure = _NOT_CONNECTED.get(error.errno or 0, (f"cannot be reached: {_reason(error)}", ""))
        return problem(area, f"{server} {reason}", cure)
    if ldap.tls != "none" and server.host.lower() == "localhost":
        what = "libldap expects the name of this machine in the certificate of localhost"
        return warning(area, what, f"write 127.0.0.1 or {socket.gethostname()} in servers:")
    return ok(area, f"{server} answers" + (f" with {version}, its certificate is good" if version else " without TLS"))


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


async def _probe(area: str, config: Config, name: str, ldap: Ldap) -> list[Finding]:
    """What the LDAP client itself makes of every server, as the user that popproxy will run as."""
    try:
        started = await in_daemon_thread(partial(start_ldap, config, name, ldap, 1))
    except CannotStart as error:
        return [problem(area, str(error), error.cure)]
    loop = asyncio.get_running_loop()
    helper = Helper(name, started, loop, workers=1, queue_limit=1, deadline=PROBE_SECONDS)
    try:
        probed = await LdapDirectory(name, ldap, helper).probe()
    except Unavailable as error:
        return [problem(area, f"was not asked to the end: {error}", "look at the log of the directory")]
    finally:
        helper.close()
    findings = []
    for server in probed:
        if server["stage"]:
            text, cure = _STAGES[server["stage"]]
            findings.append(problem(area, text.format_map(server), cure))
        else:
            how = "users can bind" if ldap.user_dn is not None else "the search runs"
            findings.append(ok(area, f"{server['uri']} lets popproxy in, {how}"))
    if ldap.account is None and ldap.user_dn is None:
        findings.append(warning(area, "is searched anonymously", "give popproxy an account that may read the users"))
    return findings
