"""Checks of what EXTERNAL needs: authorities, revocation lists, and the files that make users of certificates."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509

from popproxy.app.checks.finding import Finding, ok, problem, unreadable, warning
from popproxy.app.client_certificates import certificate_rules
from popproxy.auth.revocation import parse_lists
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.errors import ConfigError


def check_client_certificates(config: Config) -> list[Finding]:
    """Findings about every listener that asks clients for certificates, and the section external. Reads files."""
    findings: list[Finding] = []
    for listener in config.listeners:
        if listener.client_ca is not None and listener.tls != "none":
            findings += _authorities(listener)
    if config.external is not None:
        try:
            certificate_rules(config.external)
        except ConfigError as error:
            findings += [problem("external", f"{one.where}: {one.what}", one.cure) for one in error.problems]
    return findings


def _authorities(listener: Listener) -> Iterator[Finding]:
    area, path = f"listener {listener.name}", listener.client_ca
    assert path is not None
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        yield unreadable(area, path, error)
        return
    except ValueError:
        cure = "the file must begin with -----BEGIN CERTIFICATE-----"
        yield problem(area, f"no certificate in PEM can be read from {path}", cure)
        return
    now = datetime.now(UTC)
    for authority in found:
        if authority.not_valid_after_utc <= now:
            name = authority.subject.rfc4514_string()
            yield problem(area, f"the authority {name} for clients has expired", "put its successor into client_ca")
    names = ", ".join(authority.subject.rfc4514_string() for authority in found)
    yield ok(area, f"clients may show certificates of {names}")
    yield from _lists(area, listener, found, now)


def _lists(area: str, listener: Listener, authorities: list[x509.Certificate], now: datetime) -> Iterator[Finding]:
    path = listener.client_crl
    if path is None:
        return
    try:
        lists = parse_lists(path.read_bytes(), str(path), authorities)
    except OSError as error:
        yield unreadable(area, path, error)
        return
    except ConfigError as error:
        for wrong in error.problems:
            yield problem(area, f"{wrong.where}: {wrong.what}", wrong.cure)
        return
    for one in lists.values():
        name, until = one.issuer.rfc4514_string(), one.next_update_utc
        if until is not None and until <= now:
            cure = "fetch a new one; until then EXTERNAL is answered [SYS/TEMP]"
            yield problem(area, f"the revocation list of {name} is out of date", cure)
        else:
            yield ok(area, f"the revocation list of {name} is good" + (f" until {until:%Y-%m-%d}" if until else ""))
    for authority in authorities:
        if authority.subject.public_bytes() not in lists:
            name = authority.subject.rfc4514_string()
            text = f"there is no revocation list of {name}: certificates that it has issued are not accepted"
            yield warning(area, text, "add its list to client_crl")
