"""From the configuration to what judges client certificates. Imported where EXTERNAL is offered: it takes memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from popproxy.auth.certificate_names import CertificateRule, by_pattern, parse_table
from popproxy.auth.certificates import CertificateProver
from popproxy.auth.revocation import RevocationLists
from popproxy.config.model_mechanisms import External
from popproxy.errors import ConfigError, Problem
from popproxy.state.executors import BoundedExecutor
from popproxy.state.reread import RereadFile

logger = logging.getLogger("popproxy.auth")


def certificate_prover(
    section: External, authorities: bytes, crl: Path | None, vet: Callable[[str], str], executor: BoundedExecutor
) -> CertificateProver:
    """`authorities` is the listener's client_ca in PEM, `crl` its revocation lists. Raises ConfigError."""
    lists = None
    if crl is not None:
        lists = RevocationLists(crl, x509.load_pem_x509_certificates(authorities), executor)
    return CertificateProver(certificate_rules(section), vet, lists)


def certificate_rules(section: External) -> list[CertificateRule]:
    """The rules of the configuration. Raises ConfigError for a file that cannot be used."""
    rules = []
    for rule in section.rules:
        if rule.file is not None:
            find = _table(rule.file, rule.take)
        else:
            find = by_pattern(rule.regex if rule.regex is not None else "(?s:.*)", rule.user or r"\g<0>")
        rules.append(CertificateRule(rule.take, find))
    return rules


def _table(path: Path, field: str) -> Callable[[str], str | None]:
    try:
        file = RereadFile(path, lambda octets: parse_table(octets, str(path), field), logger)
    except OSError as error:
        cure = "create it, or correct external.rules[].file"
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None

    def find(value: str) -> str | None:
        if file.is_stale():
            file.refresh()
        return file.value.get(value)

    return find
