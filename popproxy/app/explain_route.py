"""How a user's route is found, step by step: what operators, directories and rules say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from popproxy.app.explanation import Ended, move_in_words, place_in_words
from popproxy.directories.entry import Refused
from popproxy.errors import Unavailable
from popproxy.routing.places import Place
from popproxy.routing.router import Misplaced, Route, Router
from popproxy.state.orders import Move
from popproxy.types import Location, Step

Say = Callable[[str, Step], None]
"""Adds a step of a stage to the explanation."""


def explain_route(
    user: str, router: Router, directories: Sequence[str], move: Move | None, ask: Callable[[str], Place] | None,
    say: Say,
) -> Route:  # fmt: skip
    """The route of a canonical name; `ask` None: the directories are not asked. Raises Ended, having said why."""
    if move is not None:
        say("route", Step(move_in_words(move), ("pools", move.pool)))
    location = None
    if directories and (move is None or move.backend_user is None):
        location = _ask(user, directories, ask, say, moved=move is not None)
    try:
        route = router.find(user, location, move)
    except Misplaced as error:
        say("route", Step(f"refused: {error}", ("pools",), "refused"))
        raise Ended("not set up", str(error)) from None
    if move is None and (location is None or (location.pool is None and location.server is None)):
        steps = router.steps(user)
        for step in steps:
            say("route", step)
        if route is None:
            raise Ended("refused", steps[-1].text.removeprefix("refused: "))
    assert route is not None
    return route


def _ask(
    user: str, names: Sequence[str], ask: Callable[[str], Place] | None, say: Say, *, moved: bool
) -> Location | None:
    if ask is None:
        says = "; only the name there counts" if moved else "; what it says goes before what follows"
        for number, name in enumerate(names):
            text = f"{name}: asked where the mail of {user} is{says}"
            say("route", Step(text, ("routing", "directories", number), "open"))
        return None
    key = ("routing", "directories")
    try:
        place = ask(user)
    except Unavailable as error:
        why = f"{error}: [SYS/TEMP], unless an older answer is remembered"
        say("route", Step(f"refused: {why}", key, "refused"))
        raise Ended("refused", why) from None
    if isinstance(place, Refused):
        why = f"{', '.join(names)}: {place.reason.replace('_', ' ')}"
        say("route", Step(f"refused: {why}", key, "refused"))
        raise Ended("refused", why)
    say("route", Step(f"{', '.join(names)}: {place_in_words(place)}", key, "passed" if place is None else "done"))
    return place
