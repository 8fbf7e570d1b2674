"""How many maildrops one user may have open, in all and from one address."""

from __future__ import annotations

from popproxy.config.model import Limits
from popproxy.state.shared import Lease, SharedState


async def take_session(state: SharedState, limits: Limits, user: str, address: str) -> Lease | None:
    """A lease for one more session of the canonical `user` from `address` (IPv6: a /64); None if he has too many."""
    taken = await state.acquire(user, (("", limits.sessions_per_user), (address, limits.sessions_per_user_and_address)))
    return None if isinstance(taken, str) else taken
