"""The last step of AUTH GSSAPI and what comes behind it, by clients that know the rules and break them."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.kpop_client import framed
from tests.peers.line_client import LineClient
from tests.peers.messages import wire
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, proxies
from tests.peers.tickets import LAYERED, Flag, Initiator
from tests.real.kerberos_clients import IN, at_choice, b64, next_session_is_fine, refused, watched
from tests.real.kerberos_rig import MESSAGE, Site, configuration, curl, pop3test

SIZE = b"\0\xff\xff"
CHOOSE = b"-ERR choose one of the security layers that are offered"
UNVERIFIED = b"-ERR the choice of a security layer cannot be verified"
TOO_SHORT = b"-ERR the choice of a security layer is too short"
TOO_SMALL = b"-ERR the maximum size is too small for the security layer"
AUTHZID = b"-ERR malformed authorization identity"


@contextlib.contextmanager
def broken(it: Site, proxy: Proxy | None = None) -> Iterator[None]:
    """The session inside has shown a good ticket, and then nonsense: that is on record with its name."""
    proxy = proxy or it.proxy
    with refused(proxy, "GSSAPI", "malformed", "quit_before_login"):
        yield
    assert proxy.audit("auth")[-1]["user.name"] == f"alice@{it.realm.name}"
    next_session_is_fine(it, proxy)


def leave(client: LineClient) -> None:
    """The refusal has not ended the session."""
    assert client.command("NOOP").startswith(b"+OK")
    assert client.command("QUIT").startswith(b"+OK")


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (b"", TOO_SHORT),
        (b"\x01", TOO_SHORT),
        (b"\x01\0", TOO_SHORT),
        (b"\x01\0\0", TOO_SHORT),
        (b"\x00" + SIZE, CHOOSE),
        (b"\x03" + SIZE, CHOOSE),
        (b"\x05" + SIZE, CHOOSE),
        (b"\x06" + SIZE, CHOOSE),
        (b"\x07" + SIZE, CHOOSE),
        (b"\x08" + SIZE, CHOOSE),
        (b"\x81" + SIZE, CHOOSE),
        (b"\xff" + SIZE, CHOOSE),
        (b"\x02\0\0\0", TOO_SMALL),
        (b"\x04\0\0\0", TOO_SMALL),
        (b"\x02\0\0\x40", TOO_SMALL),
        (b"\x04\0\0\x40", TOO_SMALL),
        (b"\x01\0\0\0alice\0", AUTHZID),
        (b"\x01\0\0\0ali\0ce", AUTHZID),
        (b"\x01\0\0\0al\xc3ice", AUTHZID),
        (b"\x01\0\0\0" + b"a" * 1025, AUTHZID),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) and not value.startswith(b"-ERR") else "",
)
def test_choice_that_is_none(maildrop: Site, message: bytes, answer: bytes) -> None:
    it = maildrop
    with broken(it), LineClient(it.proxy.port()) as client:
        gss = at_choice(it, client).gss
        assert client.command(b64(gss.wrap(message, confidential=False))) == answer
        leave(client)


def turned(token: bytes, flags: int) -> bytes:
    """A token with other flags (RFC 4121 section 4.2.2): 1 SentByAcceptor, 2 Sealed, 4 AcceptorSubkey."""
    return token[:2] + bytes([token[2] ^ flags]) + token[3:]


BENDS: dict[str, Callable[[Initiator, bytes, bytes], bytes]] = {
    "our own offer, sent back": lambda gss, choice, offer: offer,
    "nothing": lambda gss, choice, offer: b"",
    "not wrapped": lambda gss, choice, offer: b"\x01\0\0\0",
    "as if sent by us": lambda gss, choice, offer: turned(choice, 1),
    "as if sealed": lambda gss, choice, offer: turned(choice, 2),
    "as if under another key": lambda gss, choice, offer: turned(choice, 4),
    "cut": lambda gss, choice, offer: choice[:-1],
    "longer": lambda gss, choice, offer: choice + b"\0",
    "another layer": lambda gss, choice, offer: choice[:16] + b"\x04" + choice[17:],
    "only a signature": lambda gss, choice, offer: gss.sign(b"\x01\0\0\0"),
    "a second one": lambda gss, choice, offer: gss.wrap(b"\x01\0\0\0", confidential=False),
    "64 KiB": lambda gss, choice, offer: b"\x05\x04" + bytes(64 * 1024 - 2),
}


@pytest.mark.parametrize("how", list(BENDS))
def test_choice_that_was_not_wrapped_like_this(maildrop: Site, how: str) -> None:
    it = maildrop
    with broken(it), LineClient(it.proxy.port()) as client:
        gss, _, offer = at_choice(it, client)
        choice = gss.wrap(b"\x01\0\0\0", confidential=False)
        assert client.command(b64(BENDS[how](gss, choice, offer))) == UNVERIFIED
        leave(client)


def test_choice_of_another_session(maildrop: Site) -> None:
    it = maildrop
    with LineClient(it.proxy.port()) as client:
        choice = at_choice(it, client)[0].wrap(b"\x01\0\0\0", confidential=False)
    with broken(it), LineClient(it.proxy.port()) as client:
        at_choice(it, client)
        assert client.command(b64(choice)) == UNVERIFIED
        leave(client)


def test_choice_that_is_encrypted_is_as_good(maildrop: Site) -> None:
    """A client should not (RFC 4752 section 3.1), but what it says is proved no less."""
    it = maildrop
    with LineClient(it.proxy.port()) as client:
        gss = at_choice(it, client).gss
        assert client.command(b64(gss.wrap(b"\x01\0\0\0", confidential=True))) == IN
        assert client.command("QUIT").startswith(b"+OK")


# ---- layers that are not offered ----


def proxy_with(it: Site, certificate: CertificateFiles, layers: list[str]) -> contextlib.AbstractContextManager[Proxy]:
    @contextlib.contextmanager
    def running() -> Iterator[Proxy]:
        with proxies() as start, public_directory("secrets") as directory:
            complete = configuration(it.realm, it.backend, certificate, directory, password="x", layers=layers)
            complete["pools"] = it.proxy.configuration["pools"]
            yield start(complete, env=it.realm.environment)

    return running()


@pytest.mark.parametrize(
    ("offered", "mask", "chosen"),
    [
        (["none"], 1, (2, 4)),
        (["integrity"], 2, (1, 4)),
        (["confidentiality"], 4, (1, 2)),
        (["none", "confidentiality"], 5, (2,)),
    ],
)
def test_layer_that_the_configuration_does_not_offer(
    maildrop: Site, server_certificate: CertificateFiles, offered: list[str], mask: int, chosen: tuple[int, ...]
) -> None:
    it = maildrop
    with proxy_with(it, server_certificate, offered) as proxy:
        for layer in chosen:
            with refused(proxy, "GSSAPI", "malformed", "quit_before_login"), LineClient(proxy.port()) as client:
                gss, offer, _ = at_choice(it, client)
                assert offer[0] == mask
                assert (offer[1:] == b"\0\0\0") == (mask == 1)
                assert client.command(b64(gss.wrap(bytes([layer]) + SIZE, confidential=False))) == CHOOSE
                leave(client)


def test_without_tls_every_session_is_protected_unless_somebody_insists(
    maildrop: Site, home: Path, server_certificate: CertificateFiles, authority: Authority
) -> None:
    """Curl, which knows no layer, gets in under TLS; Cyrus's client without."""
    it = maildrop
    with proxies() as start, public_directory("secrets") as directory:
        complete = configuration(it.realm, it.backend, server_certificate, directory, password="x")
        del complete["kerberos"]["layers"]
        complete["pools"] = it.proxy.configuration["pools"]
        site = replace(it, proxy=start(complete, env=it.realm.environment))
        with LineClient(site.proxy.port()) as client:
            assert at_choice(site, client).offer[0] == 2 | 4
        status, output = curl(site, home)
        assert status != 0, output
        trust = ["--cacert", str(authority.ca)]
        for options, listener in ((["--ssl-reqd"], "pop3"), ([], "pop3s")):
            status, output = curl(site, home, *trust, *options, listener=listener)
            assert status == 0, output
        for layer in (2, 4):
            assert "+OK Logged in" in pop3test(site, home, layer, "QUIT\r\n")
        assert "+OK Logged in" not in pop3test(site, home, 1, "QUIT\r\n")


def test_client_that_can_have_none_of_the_layers(maildrop: Site, server_certificate: CertificateFiles) -> None:
    """Curl's contexts are not mutual, and allow no layer."""
    it = maildrop
    with proxy_with(it, server_certificate, ["integrity", "confidentiality"]) as proxy:
        with refused(proxy, "GSSAPI", "malformed", "quit_before_login"), LineClient(proxy.port()) as client:
            gss = Initiator(it.tickets["alice"], Flag.integrity)
            client.line()
            answer = client.command(b"AUTH GSSAPI " + b64(gss.step() or b""))
            assert answer == b"-ERR your Kerberos context allows no security layer that is offered here"
            leave(client)
        assert proxy.audit("auth")[-1]["user.name"] == f"alice@{it.realm.name}"


@pytest.mark.parametrize("layer", [2, 4])
@pytest.mark.parametrize(
    "flags",
    [Flag.integrity | Flag.confidentiality, Flag.mutual_authentication | Flag.integrity | Flag.confidentiality],
    ids=["not-mutual", "not-in-order"],
)
def test_layer_that_the_context_does_not_allow(maildrop: Site, layer: int, flags: int) -> None:
    it = maildrop
    with broken(it), LineClient(it.proxy.port()) as client:
        gss, offer, _ = at_choice(it, client, Initiator(it.tickets["alice"], flags))
        assert offer == b"\x01\0\0\0"
        assert client.command(b64(gss.wrap(bytes([layer]) + SIZE, confidential=False))) == CHOOSE
        leave(client)


@pytest.mark.parametrize("layer", [2, 4])
def test_no_layer_under_tls(maildrop: Site, authority: Authority, layer: int) -> None:
    it = maildrop
    tls = ssl.create_default_context(cafile=str(authority.ca))
    with broken(it), LineClient(it.proxy.port("pop3s"), tls=tls) as client:
        gss, offer, _ = at_choice(it, client)
        assert offer == b"\x01\0\0\0"
        assert client.command(b64(gss.wrap(bytes([layer]) + SIZE, confidential=False))) == CHOOSE
        leave(client)


# ---- inside a layer ----


class Inside:
    """A client whose session is in a security layer; `largest` is the longest token that it has got."""

    def __init__(self, it: Site, client: LineClient, layer: int, size: bytes = SIZE) -> None:
        self.gss = at_choice(it, client).gss
        self.largest = 0
        self._client = client
        self._confidential = layer == 4
        self._plain = b""
        assert client.command(b64(self.gss.wrap(bytes([layer]) + size, confidential=False))) == IN

    def command(self, line: bytes) -> bytes:
        """The status line of the reply."""
        self._client.send(framed(self.gss.wrap(line + b"\r\n", confidential=self._confidential)))
        return self.until(b"\r\n")

    def until(self, end: bytes) -> bytes:
        """Everything up to and without `end`."""
        while end not in self._plain:
            token = self._client.take(int.from_bytes(self._client.take(4), "big"))
            self.largest = max(self.largest, len(token))
            plain, encrypted = self.gss.unwrap(token)
            assert encrypted == self._confidential
            self._plain += plain
        found, _, self._plain = self._plain.partition(end)
        return found


@pytest.mark.parametrize("layer", [2, 4])
@pytest.mark.parametrize("size", [256, 1024, 65536, 0xFFFFFF])
def test_no_token_is_longer_than_the_client_has_asked_for(maildrop: Site, layer: int, size: int) -> None:
    it = maildrop
    lines = b"Subject: big\n\n" + b"".join(b"%09d\n" % number for number in range(20_000))
    it.backend.deliver("alice", [lines])
    with LineClient(it.proxy.port()) as client:
        inside = Inside(it, client, layer, size.to_bytes(3, "big"))
        assert inside.command(b"RETR 1").startswith(b"+OK")
        assert inside.until(b"\r\n.\r\n") + b"\r\n" == wire(lines)
        assert inside.command(b"QUIT").startswith(b"+OK")
    assert min(size, 2000) * 0.9 < inside.largest <= size


@pytest.mark.parametrize("behind", ["layer", "clear", "forged"])
def test_what_is_pipelined_behind_the_choice_of_a_layer(maildrop: Site, behind: str) -> None:
    """The client's side of the layer begins there (RFC 4422 section 3.7); a command in the clear is not executed."""
    it = maildrop
    with LineClient(it.proxy.port()) as client:
        gss = at_choice(it, client).gss
        choice = gss.wrap(b"\x04" + SIZE + b"alice", confidential=False)
        commands = framed(gss.wrap(b"DELE 1\r\nQUIT\r\n", confidential=True))
        more = {"layer": commands, "clear": b"DELE 1\r\nQUIT\r\n", "forged": commands[:-1] + b"!"}[behind]
        client.send(b64(choice) + b"\r\n" + more)
        assert client.line() == IN
        answers = b""
        with contextlib.suppress(ConnectionError, EOFError):
            while length := client.take(4):
                plain, encrypted = gss.unwrap(client.take(int.from_bytes(length, "big")))
                assert encrypted
                answers += plain
    it.proxy.settled()
    end = it.proxy.sessions()[-1][-1]
    assert end["event.reason"] == ("logout" if behind == "layer" else "protocol")
    assert answers.count(b"+OK") == (2 if behind == "layer" else 0)
    assert len(it.backend.maildrop("alice")) == (0 if behind == "layer" else 1)


DELE = b"DELE 1\r\n"
FORGERIES: dict[str, Callable[[Initiator, bool], bytes]] = {
    "changed": lambda gss, conf: framed(gss.wrap(DELE, confidential=conf)[:-1] + b"!"),
    "of an offset in the rotation": lambda gss, conf: framed(rotated(gss.wrap(DELE, confidential=conf))),
    "as if sent by us": lambda gss, conf: framed(turned(gss.wrap(DELE, confidential=conf), 1)),
    "as if the other way sealed": lambda gss, conf: framed(turned(gss.wrap(DELE, confidential=conf), 2)),
    "out of turn": lambda gss, conf: framed([gss.wrap(DELE, confidential=conf) for _ in range(2)][1]),
    "only signed": lambda gss, conf: framed(gss.sign(DELE)),
    "in clear": lambda gss, conf: DELE,
    "in clear behind a length": lambda gss, conf: framed(DELE),
    "of length 0": lambda gss, conf: bytes(4),
    "longer than we take": lambda gss, conf: (65537).to_bytes(4, "big"),
    "endless": lambda gss, conf: b"\xff\xff\xff\xff",
}


def rotated(token: bytes) -> bytes:
    """RRC, which nothing protects, says that the octets begin elsewhere (RFC 4121 section 4.2.5)."""
    return token[:6] + b"\0\x05" + token[8:]


@pytest.mark.parametrize("layer", [2, 4])
@pytest.mark.parametrize("how", list(FORGERIES))
def test_forged_token_ends_the_session_and_deletes_nothing(maildrop: Site, layer: int, how: str) -> None:
    it = maildrop
    story = ["auth GSSAPI success", "login GSSAPI", "session_end protocol"]
    with watched(it.proxy, story), LineClient(it.proxy.port()) as client:
        inside = Inside(it, client, layer)
        client.send(FORGERIES[how](inside.gss, layer == 4))
        assert client.rest() == b""
    assert it.proxy.audit("session_end")[-1]["pop3.committed"] is False
    assert it.backend.maildrop("alice") == [MESSAGE]
    next_session_is_fine(it)


@pytest.mark.parametrize("layer", [2, 4])
def test_token_that_comes_twice_is_obeyed_once(maildrop: Site, layer: int) -> None:
    it = maildrop
    with LineClient(it.proxy.port()) as client:
        inside = Inside(it, client, layer)
        token = framed(inside.gss.wrap(DELE, confidential=layer == 4))
        client.send(token + token)
        client.rest()
    it.proxy.settled()
    assert it.proxy.sessions()[-1][-1]["event.reason"] == "protocol"
    assert it.backend.maildrop("alice") == [MESSAGE]


def test_command_that_is_only_signed_is_not_obeyed_where_all_is_encrypted(maildrop: Site) -> None:
    it = maildrop
    with LineClient(it.proxy.port()) as client:
        inside = Inside(it, client, 4)
        client.send(framed(inside.gss.wrap(DELE + b"QUIT\r\n", confidential=False)))
        assert client.rest() == b""
    it.proxy.settled()
    assert it.proxy.sessions()[-1][-1]["event.reason"] == "protocol"
    assert it.backend.maildrop("alice") == [MESSAGE]


def test_command_that_is_encrypted_where_signed_is_enough(maildrop: Site) -> None:
    it = maildrop
    with LineClient(it.proxy.port()) as client:
        inside = Inside(it, client, 2)
        client.send(framed(inside.gss.wrap(b"NOOP\r\n", confidential=True)))
        assert inside.until(b"\r\n").startswith(b"+OK")


# ---- before it ----


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b64(b"anything"), b"-ERR an empty response was expected"),
        (b"not base64!", b"-ERR this is not base64"),
        (b"QUIT", b"-ERR an empty response was expected"),
    ],
)
def test_line_that_should_be_empty(maildrop: Site, line: bytes, answer: bytes) -> None:
    it = maildrop
    with broken(it), LineClient(it.proxy.port()) as client:
        gss = Initiator(it.tickets["alice"], LAYERED)
        client.line()
        assert client.command(b"AUTH GSSAPI " + b64(gss.step() or b"")).startswith(b"+ ")
        assert client.command(line) == answer
        leave(client)


def test_client_that_thinks_better_of_it(maildrop: Site) -> None:
    it = maildrop
    with watched(it.proxy, ["session_end quit_before_login"]), LineClient(it.proxy.port()) as client:
        at_choice(it, client)
        assert client.command("*") == b"-ERR authentication cancelled"
        leave(client)


def test_reply_of_another_servers_ticket(maildrop: Site) -> None:
    """What the client sends where its empty line belongs is our own AP-REP: a peer that only echoes."""
    it = maildrop
    with broken(it), LineClient(it.proxy.port()) as client:
        gss = Initiator(it.tickets["alice"])
        client.line()
        answer = client.command(b"AUTH GSSAPI " + b64(gss.step() or b""))
        assert base64.b64decode(answer[2:])
        assert client.command(answer[2:]) == b"-ERR an empty response was expected"
        leave(client)
