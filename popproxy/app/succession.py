"""What the program of a supervisor hands over to the one that replaces it in the same process.

It is JSON in a file without a name, and the descriptors that it speaks of, which stay open. Workers notice nothing:
their messages wait in their sockets. `FORM` says which programs understand each other.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popproxy.admin.control_socket import ControlSocket
from popproxy.app.child import Stage
from popproxy.app.plan import Plan
from popproxy.state.memory_handover import store_from_json

if TYPE_CHECKING:
    from popproxy.app.generation import Generation
    from popproxy.app.supervisor import Supervisor

FORM = 1
"""Another one with every change that an earlier program could not understand."""


class NotUnderstoodError(Exception):
    """Another version has written it, and in another form."""


def living(supervisor: Supervisor) -> list[Generation]:
    """Those that serve or have sessions. Workers of a configuration that has failed are killed, and counted nothing."""
    return [
        generation for generation in supervisor.generations()
        if generation.serving or any(child.stage is Stage.LEAVING for child in generation.children)
    ]  # fmt: skip


def told_by(supervisor: Supervisor, keep: Callable[[int], int]) -> dict[str, Any]:
    """All that the next program needs; `keep` is called with each descriptor, and returns it. Secrets are in it."""

    def keep_socket(sock: socket.socket) -> int:
        return keep(sock.fileno())

    bound = supervisor.control.bound
    return {
        "form": FORM,
        "generations": [generation.hand_over(keep_socket) for generation in living(supervisor)],
        "sockets": supervisor.held.hand_over(keep_socket),
        "nursery": supervisor.nursery.hand_over(keep_socket),
        "state": supervisor.state.hand_over(keep),
        "control": None if bound is None else [str(bound.path), keep_socket(bound.sock), bound.inode],
        "routes": supervisor.router.routes,
        "past": supervisor.past,
        "operators": [[*key, count] for key, count in supervisor.operators.items()],
        "strangers": supervisor.strangers.hand_over(),
        "records": supervisor.records.hand_over(),
        "restarts": supervisor.restarts,
        "started": supervisor.started,
        "reloaded": supervisor.reloads.last,
        "upgrades": supervisor.upgrades.done,
        "version": supervisor.upgrades.own,
    }  # fmt: skip


def written(told: Mapping[str, Any]) -> int:
    """The descriptor of a file with it, from its beginning; not inherited yet."""
    descriptor = os.memfd_create("popproxy")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(told).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read(descriptor: int) -> dict[str, Any]:
    """What `written` was given; the file is closed. Raises NotUnderstoodError."""
    with open(descriptor, "rb") as file:
        told: dict[str, Any] = json.load(file)
    if told.get("form") != FORM:
        raise NotUnderstoodError(f"what runs hands over in form {told.get('form')}, and this knows {FORM}")
    return told


def rehearse(told: Mapping[str, Any]) -> None:
    """Understand it without doing anything. Raises whatever a program raises that does not."""
    for generation in told["generations"]:
        Plan.from_json(generation["plan"])
        for child in generation["children"]:
            Stage(child["stage"])
    store_from_json(told["state"]["store"])


async def take_over(supervisor: Supervisor, told: Mapping[str, Any]) -> ControlSocket | None:
    """Go on with it; returns where operators are to be answered."""
    sockets: dict[int, socket.socket] = {}

    def adopt(number: int) -> socket.socket:
        if number not in sockets:  # one object for each, in whatever role
            os.set_inheritable(number, False)
            sockets[number] = socket.socket(fileno=number)
        return sockets[number]

    supervisor.past, supervisor.restarts, supervisor.started = told["past"], told["restarts"], told["started"]
    supervisor.operators.update({(way, result): count for way, result, count in told["operators"]})
    supervisor.strangers.take_over(told["strangers"])
    successful, when = told["reloaded"]
    supervisor.reloads.last = successful, when
    supervisor.upgrades.done = told["upgrades"] + 1
    supervisor.router.routes = told["routes"]
    supervisor.records.take_over(told["records"])
    supervisor.held.take_over(told["sockets"], adopt)
    supervisor.nursery.take_over(told["nursery"], adopt)
    await supervisor.state.take_over(told["state"], adopt)
    for one in told["generations"]:
        generation = supervisor.made(one["number"])
        if one["serving"]:
            supervisor.current = generation
        else:
            supervisor.retired.append(generation)
        generation.take_over(one, adopt)
    if told["control"] is None:
        return None
    path, number, inode = told["control"]
    return ControlSocket(Path(path), adopt(number), inode)
