"""Control octets in every field of every mechanism: not one octet may reach a backend.

nginx forwards AUTH PLAIN with CR and LF in it as commands of their own; Dovecot cuts a name at NUL.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.issuer import Issuer, issuing
from tests.peers.proxy import StartProxy, settings
from tests.peers.raw import RawClient
from tests.peers.scripted import ScriptedBackend

CONTROL = [bytes([octet]) for octet in (*range(32), 127)]
SASL = [
    *("CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"),
    *("EXTERNAL", "OAUTHBEARER", "XOAUTH2"),
]
PLACES: dict[str, Callable[[bytes, bytes], bytes]] = {  # by listener
    "pop3": lambda text, octet: text[:3] + octet + text[3:],
    "pop3s": lambda text, octet: text + octet + b"DELE 1",
}


class Probe(NamedTuple):
    """A field of a mechanism: `lines` that a client sends when its value is `text`; the last answer is the verdict."""

    name: str
    value: bytes
    lines: Callable[[bytes], list[bytes]]
    ends_lines: bool = False  # the field stands on the wire as it is: CR LF would end the line
    inside_tls: bool = False  # it is offered there only


def _b64(*parts: bytes) -> bytes:
    return base64.b64encode(b"\0".join(parts))


def _scram(name: str, what: str, text: bytes) -> list[bytes]:
    """Both messages of the client; the proof in the second one is wrong, but what matters comes before."""
    authcid, authzid = (text, b"") if what == "authcid" else (b"alice", b"a=" + text)
    binding = b"p=tls-server-end-point" if name.endswith("-PLUS") else b"n"
    first = binding + b"," + authzid + b",n=" + authcid + b",r=" + b"x" * 20
    return [f"AUTH {name} ".encode() + base64.b64encode(first), base64.b64encode(b"c=biws,r=x,p=" + b"A" * 28)]


def _bearer(token: bytes, user: bytes = b"alice") -> list[bytes]:
    return [b"AUTH OAUTHBEARER " + base64.b64encode(b"n,a=" + user + b",\1auth=Bearer " + token + b"\1\1")]


def _xoauth2(token: bytes, user: bytes = b"alice") -> list[bytes]:
    return [b"AUTH XOAUTH2 " + base64.b64encode(b"user=" + user + b"\1auth=Bearer " + token + b"\1\1")]


PASSWORD = canary("probe").encode()
PROBES = [
    Probe("USER name", b"alice", lambda text: [b"USER " + text, b"PASS " + PASSWORD], ends_lines=True),
    Probe("USER password", PASSWORD, lambda text: [b"USER alice", b"PASS " + text], ends_lines=True),
    Probe("APOP name", b"alice", lambda text: [b"APOP " + text + b" " + b"0" * 32], ends_lines=True),
    Probe("PLAIN authzid", b"alice", lambda text: [b"AUTH PLAIN " + _b64(text, b"alice", PASSWORD)]),
    Probe("PLAIN authcid", b"alice", lambda text: [b"AUTH PLAIN " + _b64(b"", text, PASSWORD)]),
    Probe("PLAIN password", PASSWORD, lambda text: [b"AUTH PLAIN " + _b64(b"", b"alice", text)]),
    Probe("PLAIN in two steps", PASSWORD, lambda text: [b"AUTH PLAIN", _b64(b"", b"alice", text)]),
    Probe("LOGIN name", b"alice", lambda text: [b"AUTH LOGIN", base64.b64encode(text), base64.b64encode(PASSWORD)]),
    Probe("CRAM-MD5 name", b"alice", lambda text: [b"AUTH CRAM-MD5", base64.b64encode(text + b" " + b"0" * 32)]),
    *(
        Probe(f"{name} {what}", b"alice", lambda text, name=name, what=what: _scram(name, what, text))  # type: ignore[misc]
        for name in SASL
        if name.startswith("SCRAM")
        for what in ("authcid", "authzid")
    ),
    Probe("LOGIN password", PASSWORD, lambda text: [b"AUTH LOGIN", _b64(b"alice"), base64.b64encode(text)]),
    Probe("RPOP name", b"alice", lambda text: [b"USER " + text, b"RPOP id"], ends_lines=True),
    Probe("RPOP id", PASSWORD, lambda text: [b"USER alice", b"RPOP " + text], ends_lines=True),
    Probe("EXTERNAL", b"alice", lambda text: [b"AUTH EXTERNAL " + base64.b64encode(text)], inside_tls=True),
    Probe("EXTERNAL in two steps", b"alice", lambda text: [b"AUTH EXTERNAL", base64.b64encode(text)], inside_tls=True),
    Probe("OAUTHBEARER authzid", b"alice", lambda text: _bearer(PASSWORD, text), inside_tls=True),
    Probe("OAUTHBEARER token", PASSWORD, _bearer, inside_tls=True),
    Probe("XOAUTH2 user", b"alice", lambda text: _xoauth2(PASSWORD, text), inside_tls=True),
    Probe("XOAUTH2 token", PASSWORD, _xoauth2, inside_tls=True),
]


async def probe(client: RawClient, lines: list[bytes]) -> bytes:
    """The last answer: to all lines, or to the first that is refused. SCRAM tells its failure in a challenge first."""
    answer = b""
    for line in lines:
        answer = await client.command(line)
        if answer.startswith(b"-ERR"):
            return answer
    return await client.command(b"") if answer.startswith(b"+ ") else answer


def in_a_good_token(issuer: Issuer) -> Probe:
    """A token that the issuer has signed, for a user with such a name."""
    return Probe(
        "OAUTHBEARER claim", b"alice", lambda text: _bearer(issuer.token(text.decode()).encode(), b""), inside_tls=True
    )


async def test_no_octet_reaches_a_backend(
    start_proxy: StartProxy, authority: Authority, server_certificate: CertificateFiles
) -> None:
    probes: Counter[str] = Counter()
    certificate = authority.client(common_name="alice")
    with issuing(authority) as issuer:
        async with ScriptedBackend() as backend:
            listener = {"apop": True, "sasl": SASL, "rpop": "id", "client_ca": str(authority.ca)}
            configuration = settings(
                backend.address, server_certificate, pool={"login": ["forward", "stored"]}, listener=listener,
                penalties={"enabled": False}, authentication={"tries": 100, "failure_delay": "0s"},
                limits={"bad_commands": 1000}, rpop={"networks": ["127.0.0.0/8"]},
                external={"rules": [{"take": "common_name"}]}, oauth={"issuers": [issuer.section()]},
            )  # fmt: skip
            proxy = await asyncio.to_thread(start_proxy, configuration, vault={"alice": canary()})
            for one, (where, place) in product([*PROBES, in_a_good_token(issuer)], PLACES.items()):
                tls = one.inside_tls or where == "pop3s"
                port, ca = proxy.port("pop3s" if tls else "pop3"), authority.ca if tls else None
                async with RawClient(port, ca=ca, certificate=certificate) as client:
                    await client.line()
                    for octet in CONTROL:
                        if one.ends_lines and octet == b"\n":
                            continue  # that is the end of the line, and what follows another one
                        answer = await probe(client, one.lines(place(one.value, octet)))
                        assert answer.startswith(b"-ERR"), (one.name, octet, answer)
                        assert b"not offered" not in answer or (not tls and "-PLUS" in one.name), (one.name, answer)
                        probes[one.name.split()[0]] += 1
            assert backend.sessions == []
            records = await asyncio.to_thread(proxy.settled)
        assert not [record for record in records if record["event.action"] in ("login", "backend_connect")]
        refused = [record.get("event.reason") for record in records if record["event.action"] == "auth"]
        assert set(refused) <= {"control_character", "bad_credentials", "malformed"}
        assert refused.count("control_character") >= 1000
        assert [path for path in issuer.asked if "keys" not in path and "well-known" not in path] == []
    assert all(probes[name] >= 60 for name in ("USER", "APOP", "RPOP", "PLAIN", "LOGIN", *SASL)), probes
