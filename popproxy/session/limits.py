"""How many maildrops one user may have open, in all and from one address, and how soon after each other."""

from __future__ import annotations

from popproxy.config.model import Limits
from popproxy.state.shared import Claim, Lease, SharedState

_LOGIN = "login"  # kind of claims: one for each user


async def take_session(state: SharedState, limits: Limits, user: str, address: str) -> Lease | None:
    """A lease for one more session of the canonical `user` from `address` (IPv6: a /64); None if he has too many."""
    taken = await state.acquire(user, (("", limits.sessions_per_user), (address, limits.sessions_per_user_and_address)))
    return None if isinstance(taken, str) else taken


async def take_turn(state: SharedState, limits: Limits, user: str) -> bool:
    """May the canonical `user` log in now? False if that is too soon after the last time (RFC 2449 section 6.5)."""
    if not limits.login_delay:
        return True
    return await state.claim(_LOGIN, user, limits.login_delay) is not Claim.REPEATED


def give_turn_back(state: SharedState, limits: Limits, user: str) -> None:
    """Nothing came of that login: the next one need not wait."""
    if limits.login_delay:
        state.unclaim(_LOGIN, user)
