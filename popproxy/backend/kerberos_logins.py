"""The strategies kerberos-...: which of them has what it needs for a user, and the tokens of a login under way.

Nothing here imports GSSAPI: without Kerberos in the configuration its libraries need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from popproxy.backend.pool import Backend, Pool
from popproxy.errors import BackendError, Unavailable
from popproxy.kerberos.delegation_failure import DelegationFailed, Obstacle
from popproxy.net.channel import Channel
from popproxy.net.gss_layer import GssLayer
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import TokenNeeded
from popproxy.pop3.logins import Gssapi
from popproxy.sasl.credentials import Credential, GssapiCredential, KpopCredential, Layer
from popproxy.sasl.gssapi_client import OUR_MAX_SIZE, Protection
from popproxy.types import Identity

if TYPE_CHECKING:
    from popproxy.kerberos.acceptor import DelegatedCredentials, GssContext
    from popproxy.kerberos.delegation import Source
    from popproxy.kerberos.evidence import Evidence
    from popproxy.kerberos.initiator import Initiator

_LAYERS: Final = {"none": Layer.NONE, "integrity": Layer.INTEGRITY, "confidentiality": Layer.CONFIDENTIALITY}

log = get_logger("backend")


class Sources(Protocol):
    """Where the credentials of a login come from: Delegation. Each source is what `Gssapi` wants of one."""

    def forwarded(self, user: str, delegated: DelegatedCredentials) -> object:
        """The ticket-granting ticket that the client has forwarded."""
        ...

    def delegated(self, user: str, evidence: Evidence, forwarded: DelegatedCredentials | None) -> object:
        """S4U2Proxy with the client's own ticket."""
        ...

    def transition(self, user: str) -> object:
        """S4U2Self, then S4U2Proxy."""
        ...

    def service(self) -> object:
        """The proxy's own ticket."""
        ...


class KerberosLogins:
    """Logins by ticket. One for the process.

    `principal_of` gives the principal of a user who has logged in without Kerberos, or None: the mapping of principals
    to mailboxes, backwards.
    """

    def __init__(self, delegation: Sources, principal_of: Callable[[str], str | None]) -> None:
        self._delegation = delegation
        self._principal_of = principal_of

    def login(
        self, strategy: str, pool: Pool, backend_user: str, identity: Identity, credential: Credential
    ) -> Gssapi | None:
        """The login by `strategy`, None if there is nothing to begin it with. `identity` must be proven."""
        source = self._source(strategy, identity, credential)
        if source is None:
            return None
        names = pool.config.kerberos.layers if pool.config.tls == "none" else ["none"]
        return Gssapi(backend_user, source, tuple(_LAYERS[name] for name in names), strategy)

    def _source(self, strategy: str, identity: Identity, credential: Credential) -> object:
        if strategy == "kerberos-service":
            return self._delegation.service()
        if strategy == "kerberos-transition":
            user = identity.principal or self._principal_of(identity.user)
            return self._delegation.transition(user) if user else None
        context = cast("GssContext | None", credential.context) if isinstance(credential, GssapiCredential) else None
        forwarded = None if context is None else context.delegated
        if strategy == "kerberos-forwarded":
            return None if forwarded is None else self._delegation.forwarded(identity.principal, forwarded)
        evidence = None if context is None else context.evidence
        if isinstance(credential, KpopCredential):
            evidence = cast("Evidence | None", credential.evidence)
        return None if evidence is None else self._delegation.delegated(identity.principal, evidence, forwarded)


async def make_token(
    pool: Pool,
    backend: Backend,
    channel: Channel,
    core: ClientConnection,
    event: TokenNeeded,
    begun: object,
    metrics: Metrics,
) -> object:
    """Answer the core's `event`. `begun` is what the call before has returned for this login, None at the start.

    Raises DelegationFailed if the login cannot be begun, nor any behind it; BackendError.
    """
    source = cast("Source", event.login.source)
    if event.token is None:
        begun = source.context(backend.principal, _channel_binding(pool, channel))
    context = cast("Initiator", begun)
    strategy, counts = event.login.strategy, metrics.backend_tickets
    try:
        token = await context.advance(event.token)
    except Unavailable as error:
        counts[(strategy, Obstacle.UNAVAILABLE)] += 1
        raise DelegationFailed(Obstacle.UNAVAILABLE, strategy, str(error)) from None
    except DelegationFailed as failure:
        counts[(strategy, failure.obstacle)] += 1
        if failure.obstacle is not Obstacle.NOT_DELEGATABLE or not core.skip_login():
            raise
        log.warning("a login is passed over", strategy=strategy, backend=backend.label, why=str(failure))
        return None
    if event.token is None:
        counts[(strategy, "ok")] += 1
    if channel.closed:
        raise BackendError("connection closed", "login", "eof")
    core.token_made(context, token)
    return context


def protect(channel: Channel, protection: Protection) -> None:
    """From here on everything is in the security layer that was agreed on."""
    confidential = protection.layer is Layer.CONFIDENTIALITY
    channel.start_gss(GssLayer(protection.context, protection.server_max, OUR_MAX_SIZE, confidential))


def _channel_binding(pool: Pool, channel: Channel) -> bytes | None:
    if not pool.config.kerberos.channel_binding:
        return None
    from popproxy.net.certificate import end_point  # noqa: PLC0415 - large, and only Kerberos needs it here

    certificate = channel.peer_certificate
    return None if certificate is None else end_point(certificate)
