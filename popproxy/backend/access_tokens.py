"""Access tokens for the strategy xoauth2 (OAuth 2.0, RFC 6749): got once for many sessions, kept until they run out.

The endpoint is somebody else's machine: it may be down, slow, or say what is not true. Then there is no token for the
time being (Unavailable in spirit: [SYS/TEMP] for the client). That it refuses us is another matter: our own credential,
or what the vault keeps for a user, is wrong.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from popproxy.config.model_backends import XOAuth2
from popproxy.errors import BackendError, PopproxyError, Unavailable
from popproxy.net.channel import Channel
from popproxy.observe.logs import get_logger
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import AccessTokenNeeded
from popproxy.types import Secret

if TYPE_CHECKING:
    from popproxy.net.json_http import Answer

log = get_logger("tokens")

Ask = Callable[[str, Mapping[str, str], str | None, Secret | None], Awaitable["Answer"]]
"""JsonHttp.request_token: URL, form, and the client's credentials for HTTP's basic authentication."""
Keep = Callable[[str, Secret, Secret], Awaitable[None]]
"""Keeps a user's new refresh token in place of the old one. May raise any PopproxyError."""
TokenOutcome = Literal["ok", "unavailable", "refused"]

USERS: Final = 10_000
"""Whose tokens are kept."""
UNTOLD_LIFETIME: Final = 300.0
"""Seconds; expires_in is only recommended."""
LONGEST_LIFETIME: Final = 86_400.0
MARGIN: Final = 60.0
"""Seconds before its end at which a token is renewed, at most a tenth of its life."""
PAUSE: Final[Mapping[str, float]] = {"unavailable": 2.0, "refused": 30.0}
"""Seconds for which an endpoint that has failed is not asked the same again."""
YOUNG: Final = 30.0
"""Seconds: a token that a server refuses so soon is not to blame, and a new one would be refused, too."""
MAX_TOKEN: Final = 16 * 1024
"""Octets."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1
_REFRESH_TOKEN = re.compile(r"[!-~]+")  # RFC 6749 appendix A.17, without spaces
_ERROR = re.compile(r"[a-z_]{1,40}")
_MICROSOFTS = re.compile(r"AADSTS[0-9]{4,8}")
_FOR_A_WHILE = frozenset({"temporarily_unavailable", "server_error", "slow_down", "authorization_pending"})


class NoAccessToken(PopproxyError):
    """There is no access token for the backend. Nothing has been sent there.

    `outcome`: unavailable (it may work later without anybody's doing) or refused. The text is for the operational log.
    """

    strategy = "xoauth2"

    def __init__(self, outcome: Literal["unavailable", "refused"], what: str) -> None:
        super().__init__(what)
        self.outcome = outcome

    @property
    def temporary(self) -> bool:
        """Is nobody's credential to blame?"""
        return self.outcome == "unavailable"


@dataclass(slots=True)
class _Kept:
    """What an endpoint has said to a refresh token (as it stands in the vault), or to us: a token, or why not."""

    by: Secret | None
    outcome: Secret | NoAccessToken
    got: float
    until: float


class AccessTokens:
    """Those for one pool. One for the process; all of it in the event loop.

    `client_secret` may be None for grant refresh_token; `count` is told of each answer of the endpoint.
    """

    def __init__(
        self,
        config: XOAuth2,
        ask: Ask,
        client_secret: Secret | None,
        *,
        keep: Keep,
        count: Callable[[TokenOutcome], None] = lambda _outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._ask = ask
        self._client_secret = client_secret
        self._keep = keep
        self._count = count
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by user, "" for popproxy itself; oldest use first
        self._asking: dict[str, asyncio.Task[Secret]] = {}
        self._renewed: dict[str, tuple[Secret, Secret]] = {}  # by user: what is in the vault, and what counts instead

    def own(self) -> TokenSource:
        """Popproxy's own token."""
        return TokenSource(self, "", None)

    def of(self, user: str, refresh_token: Secret) -> TokenSource:
        """The user's, by this refresh token."""
        return TokenSource(self, user, refresh_token)

    async def get(self, user: str, refresh_token: Secret | None) -> Secret:
        """The token, from memory if it is good for a while yet. Raises NoAccessToken."""
        kept = self._kept.get(user)
        if kept is not None and self._clock() < kept.until and kept.by == refresh_token:
            if isinstance(kept.outcome, NoAccessToken):
                raise NoAccessToken(kept.outcome.outcome, str(kept.outcome))
            self._kept.move_to_end(user)
            return kept.outcome
        task = self._asking.get(user)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(user, refresh_token))
            self._asking[user] = task
            task.add_done_callback(lambda done: self._asked(user, done))
        return await asyncio.shield(task)  # whoever goes away leaves the others their answer

    def refused(self, user: str) -> None:
        """A server does not take the token: get another next time, if it has been in use for a while."""
        kept = self._kept.get(user)
        if kept is not None and self._clock() - kept.got > YOUNG:
            del self._kept[user]

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        for task in self._asking.values():
            task.cancel()

    def _asked(self, user: str, done: asyncio.Task[Secret]) -> None:
        del self._asking[user]
        if not done.cancelled():
            done.exception()  # perhaps nobody is there any more to hear it

    async def _fetch(self, user: str, refresh_token: Secret | None) -> Secret:
        current = self._current(user, refresh_token)
        try:
            answer = await self._request(current)
            token, lifetime = _granted(answer)
        except Unavailable as error:
            raise self._failed(user, refresh_token, NoAccessToken("unavailable", str(error))) from None
        except NoAccessToken as error:
            raise self._failed(user, refresh_token, error) from None
        kept = self._remember(user, refresh_token, token, lifetime - min(MARGIN, lifetime / 10))
        self._count("ok")
        if current is not None and refresh_token is not None:
            await self._take_over(user, refresh_token, current, answer, kept)
        return token

    def _failed(self, user: str, refresh_token: Secret | None, error: NoAccessToken) -> NoAccessToken:
        self._count(error.outcome)
        self._remember(user, refresh_token, NoAccessToken(error.outcome, str(error)), PAUSE[error.outcome])
        return error

    def _remember(self, user: str, by: Secret | None, outcome: Secret | NoAccessToken, seconds: float) -> _Kept:
        now = self._clock()
        kept = self._kept[user] = _Kept(by, outcome, now, now + seconds)
        self._kept.move_to_end(user)
        if len(self._kept) > USERS:
            self._kept.popitem(last=False)
        return kept

    async def _request(self, refresh_token: Secret | None) -> Answer:
        config = self.config
        form: dict[str, str] = {"grant_type": config.grant}
        if config.scope is not None:
            form["scope"] = config.scope
        if refresh_token is not None:
            form["refresh_token"] = refresh_token.reveal().decode("ascii")
        if self._client_secret is None:
            return await self._ask(config.endpoint, {**form, "client_id": config.client_id}, None, None)
        if config.client_auth == "form":
            secret = self._client_secret.reveal().decode("utf-8", "surrogateescape")
            form |= {"client_id": config.client_id, "client_secret": secret}
            return await self._ask(config.endpoint, form, None, None)
        return await self._ask(config.endpoint, form, config.client_id, self._client_secret)

    def _current(self, user: str, refresh_token: Secret | None) -> Secret | None:
        """The refresh token to send: the one that the endpoint has put in the place of the one in the vault, if any."""
        in_vault, renewed = self._renewed.get(user, (None, None))
        return renewed if in_vault is not None and in_vault == refresh_token else refresh_token

    async def _take_over(self, user: str, in_vault: Secret, sent: Secret, answer: Answer, kept: _Kept) -> None:
        """A new refresh token may come with the access token, and then the old one is to be forgotten (section 6)."""
        value = answer.fields.get("refresh_token")
        if value is None:
            return
        if not isinstance(value, str) or len(value) > MAX_TOKEN or not _REFRESH_TOKEN.fullmatch(value):
            log.error("the endpoint sends a new refresh token that cannot be one", user=user)
            return
        if Secret(value) == sent:
            return
        renewed = Secret(value)
        self._renewed[user] = (in_vault, renewed)  # good until the vault has it, or, if it cannot, until the next start
        try:
            await self._keep(user, in_vault, renewed)
        except PopproxyError as error:
            log.error("a new refresh token cannot be kept in the vault", user=user, why=str(error))
        else:
            kept.by = renewed


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the token of one login comes from."""

    tokens: AccessTokens
    user: str
    refresh_token: Secret | None

    async def token(self) -> Secret:
        """Raises NoAccessToken."""
        return await self.tokens.get(self.user, self.refresh_token)

    def refused(self) -> None:
        """The server has refused it."""
        self.tokens.refused(self.user)


async def give_token(channel: Channel, core: ClientConnection, event: AccessTokenNeeded) -> None:
    """Answer the core's `event`. Raises NoAccessToken, BackendError."""
    token = await cast("TokenSource", event.login.source).token()
    if channel.closed:
        raise BackendError("connection closed", "login", "eof")
    core.access_token(token)


def _granted(answer: Answer) -> tuple[Secret, float]:
    """Token and seconds of its life, at most. Raises NoAccessToken if they are refused, Unavailable for nonsense."""
    fields = answer.fields
    if answer.status != 200:
        raise _refusal(fields)
    token, kind = fields.get("access_token"), fields.get("token_type")
    if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise Unavailable("the endpoint answers without a token that could be used")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise Unavailable("the endpoint answers with a token that is no bearer token")
    return Secret(token), _lifetime(fields.get("expires_in"))


def _lifetime(value: Any) -> float:
    """Some endpoints write the number as a text."""
    if value is None:
        return UNTOLD_LIFETIME
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise Unavailable("the endpoint answers with a token that has ended")
    return float(min(value, LONGEST_LIFETIME))  # in this order: JSON has numbers that no float can hold


def _refusal(fields: Mapping[str, Any]) -> NoAccessToken:
    """RFC 6749 section 5.2. Of the texts in it only words of closed forms are told: they may quote what was sent."""
    error = fields.get("error")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        return NoAccessToken("unavailable", "the endpoint refuses without saying why")
    found = _MICROSOFTS.search(str(fields.get("error_description", "")))
    what = f"the endpoint says {error}" + (f" ({found[0]})" if found else "")
    return NoAccessToken("unavailable" if error in _FOR_A_WHILE else "refused", what)
