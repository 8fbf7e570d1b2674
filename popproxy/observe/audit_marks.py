"""The records that the audit log writes about itself: where segments and files begin and end, what is lost. Signed."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from popproxy.observe.audit_chain import Chain, heads
from popproxy.observe.audit_render import json_fields
from popproxy.observe.process_identity import process_identity

Tail = tuple[bytes, bool]
"""The last octets that others have written; True if they are in the file before this one."""


class Marks:
    """Seals them. `origin` are more members for the records that begin a segment or a file."""

    __slots__ = ("_chain", "_origin")

    def __init__(self, chain: Chain, version: str, origin: Mapping[str, object] | None = None) -> None:
        self._chain = chain
        self._origin = "," + json_fields({
            "observer.hostname": socket.gethostname(), "observer.product": "popproxy", "observer.version": version,
            "process.pid": os.getpid(), "process.entity_id": process_identity(), **(origin or {}),
        })  # fmt: skip

    def start(self, tail: Tail) -> bytes:
        """``audit_start``: the first record of a segment."""
        return self._seal("start", "success", self._origin + self._others(tail))

    def rotate(self, tail: Tail) -> bytes:
        """``audit_rotate``: the first record of a segment in a new file."""
        return self._seal("rotate", "success", self._origin + self._others(tail))

    def checkpoint(self, tail: Tail) -> bytes:
        """``audit_checkpoint``: signs what came before; the last record of a segment in a file that is rotated."""
        return self._seal("checkpoint", "success", self._others(tail))

    def stop(self, tail: Tail) -> bytes:
        """``audit_stop``: the last record of a segment."""
        return self._seal("stop", "success", self._others(tail))

    def gap(self, sink: str, first: int, lost: int, *, copy: bool = False) -> bytes:
        """``audit_gap``: so many records from number `first` on are not in this sink, which is a `copy` or the log."""
        return self._seal(
            "gap", "failure",
            f',"event.reason":"buffer_full","popproxy.audit.sink":"{sink}","popproxy.audit.lost":{lost},'
            f'"popproxy.audit.lost_from":{first},"popproxy.audit.lost_to":{first + lost - 1}'
            + (',"popproxy.audit.copy":true' if copy else ""),
        )  # fmt: skip

    def torn(self, octets: int) -> bytes:
        """``audit_torn``: so many octets of a record that a killed process left unfinished have been cut off."""
        return self._seal("torn", "failure", f',"popproxy.audit.torn":{octets}')

    def _seal(self, what: str, outcome: str, members: str) -> bytes:
        return self._chain.seal_signed(f'"event.action":"audit_{what}","event.outcome":"{outcome}"{members}')

    def _others(self, tail: Tail) -> str:
        octets, before = tail
        found = heads(octets, self._chain.segment)
        where = ',"chain.heads_in":"file before"' if before else ""
        return f',"chain.heads":[{",".join(map(str, found))}]{where}' if found else ""
