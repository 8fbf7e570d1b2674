"""Is the key that a server has shown one of those that are written down?"""

from __future__ import annotations

from popproxy.backend.pool import Pool
from popproxy.errors import TlsFailed
from popproxy.net.channel import Channel


def check_pin(pool: Pool, channel: Channel) -> None:
    """To be called right behind the handshake, when nothing has been sent yet. Raises TlsFailed."""
    if not pool.config.pin:
        return
    from popproxy.net.certificate import key_pin  # noqa: PLC0415 - large, and few need it

    shown = channel.peer_certificate
    try:
        found = "none" if shown is None else key_pin(shown)
    except ValueError:
        found = "unreadable"
    if found not in pool.config.pin:
        raise TlsFailed(f"the server's key is not one of pin: {found}", "certificate")
