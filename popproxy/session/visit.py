"""Where a login comes from, put beside the credential for those who judge by that too."""

from __future__ import annotations

from dataclasses import replace

from popproxy.net.channel import Channel
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential, Credential, PasswordCredential
from popproxy.types import Address, Visit


def with_visit(credential: Credential, source: Address, channel: Channel, attempt: int) -> Credential:
    """The credential of a client at `source`; `attempt` counts from 1 in each session."""
    if not isinstance(credential, PasswordCredential | ApopCredential | CramMd5Credential):
        return credential
    tls = channel.tls_context is not None
    return replace(credential, visit=Visit(source, tls, attempt, channel.peer_certificate))
