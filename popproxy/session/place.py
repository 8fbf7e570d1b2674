"""Where the mail of somebody who is let in lies, if directories are asked about that, too."""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf

from popproxy.directories.entry import Refused
from popproxy.routing.places import Places
from popproxy.types import Identity


async def with_place(places: Places, identity: Identity, since: float) -> Identity | Refused:
    """The identity with its place, unless the directory that has let it in said so already.

    What that one has said besides (name and password at the server) stays. What was said before `since` (seconds since
    1970) does not count. Raises Unavailable.
    """
    judged = identity.location
    if judged is not None and (judged.pool is not None or judged.server is not None):
        return identity
    place = await places.find(
        identity.user, proven=identity.proven, age=max(0.0, time.time() - since) if since else inf
    )
    if isinstance(place, Refused):
        return place
    if judged is not None and place is not None:
        place = replace(place, backend_user=judged.backend_user or place.backend_user, password=judged.password)
    return replace(identity, location=place or judged)
