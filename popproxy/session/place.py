"""Where the mail of somebody who is let in lies, if directories are asked about that, too."""

from __future__ import annotations

from dataclasses import replace

from popproxy.directories.entry import Refused
from popproxy.routing.places import Places
from popproxy.types import Identity


async def with_place(places: Places, identity: Identity) -> Identity | Refused:
    """The identity with its place, unless the directory that has let it in said so already.

    What that one has said besides (name and password at the server) stays. Raises Unavailable.
    """
    judged = identity.location
    if judged is not None and (judged.pool is not None or judged.server is not None):
        return identity
    place = await places.find(identity.user, proven=identity.proven)
    if isinstance(place, Refused):
        return place
    if judged is not None and place is not None:
        place = replace(place, backend_user=judged.backend_user or place.backend_user, password=judged.password)
    return replace(identity, location=place or judged)
