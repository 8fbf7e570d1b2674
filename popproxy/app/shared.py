"""Where the state is kept that sessions share: here, or at the supervisor for all workers."""

from __future__ import annotations

import socket

from popproxy.auth.throttle import leaks, lifetimes
from popproxy.config.model import Config
from popproxy.observe.metrics import Metrics
from popproxy.state.local import LocalState
from popproxy.state.mirrored import MirroredState
from popproxy.state.workers import SupervisorStore


def make_state(config: Config, metrics: Metrics, supervisor: socket.socket | None) -> LocalState | MirroredState:
    """`supervisor` is a socket to it, which has a StateServer at the other end; None if there is none."""
    kinds = leaks(config.penalties), lifetimes(config.penalties)
    if supervisor is None:
        return LocalState(*kinds)
    return MirroredState(SupervisorStore(supervisor), *kinds, metrics, kind="workers")
