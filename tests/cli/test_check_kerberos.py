"""``popproxy check`` about Kerberos: keytabs, replay cache and names, as far as no KDC is needed."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.check import check_environment
from popproxy.app.checks.finding import Finding
from popproxy.app.checks.kdc import _clock, _names
from popproxy.app.checks.keytabs import Acceptors
from popproxy.config.loader import load_file
from popproxy.kerberos.probe import KdcAnswer
from tests.cli.helpers import write_config
from tests.peers.keytabs import RC4, keytab, record

PRINCIPAL = "pop/mail.a.test@A.TEST"
OLD = "pop/old.a.test@A.TEST"


def give(path: Path) -> None:
    """To the user that the service becomes."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def sections(
    directory: Path, *records: bytes, listeners: dict[str, Any] | None = None, **kerberos: Any
) -> dict[str, Any]:
    """A configuration of one listener with GSSAPI, its keytab with `records`, and a replay cache."""
    file, cache = directory / "keytab", directory / "replay"
    file.write_bytes(keytab(*records))
    file.chmod(0o600)
    cache.mkdir(mode=0o700, exist_ok=True)
    give(file)
    give(cache)
    section = {
        "keytab": str(file), "principals": [PRINCIPAL], "replay_cache": str(cache), "realms": [{"realm": "A.TEST"}],
        **kerberos,
    }  # fmt: skip
    (directory / "master").write_text("canary-master")
    (directory / "master").chmod(0o600)
    give(directory / "master")
    pool = {
        "servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["master"],
        "master": {"user": "popproxy", "password": {"file": str(directory / "master")}},
    }  # fmt: skip
    first = {"name": "pop3", "listen": ["127.0.0.1:0"], "gssapi": True, "authenticate": ["kerberos"]}
    more = [{**first, "name": name, "kerberos": own} for name, own in (listeners or {}).items()]
    return {"kerberos": section, "listeners": [first, *more], "pools": {"main": pool}}


async def look(directory: Path, **given: Any) -> list[Finding]:
    """Every finding about Kerberos but those that are good."""
    found = await check_environment(load_file(write_config(directory, **given)), offline=True)
    assert not [f for f in found if f.level != "ok" and not f.area.startswith("kerberos")]
    return [f for f in found if f.level != "ok"]


async def only(directory: Path, level: str, **given: Any) -> Finding:
    found = await look(directory, **given)
    assert [f.level for f in found] == [level], found
    return found[0]


async def test_keytab_in_order(tmp_path: Path) -> None:
    assert await look(tmp_path, **sections(tmp_path, record(PRINCIPAL))) == []


async def test_keytab_that_is_not_there(tmp_path: Path) -> None:
    given = sections(tmp_path, keytab=str(tmp_path / "none"))
    found = await only(tmp_path, "problem", **given)
    assert found.area == "kerberos at pop3"
    assert "none does not exist" in found.text
    assert "ktadd -k" in found.cure
    assert "ktpass" in found.cure


async def test_file_that_is_no_keytab(tmp_path: Path) -> None:
    given = sections(tmp_path)
    (tmp_path / "keytab").write_text("BEGIN")
    found = await only(tmp_path, "problem", **given)
    assert "is no keytab: it does not begin like one" in found.text


@pytest.mark.parametrize(("mode", "who"), [(0o600, "cannot be read by nobody"), (0o644, "everybody on this machine")])
async def test_keytab_that_the_wrong_people_can_read(tmp_path: Path, mode: int, who: str) -> None:
    assert os.geteuid() == 0, "run as root: files of another owner are needed"
    given = sections(tmp_path, record(PRINCIPAL))
    os.chown(tmp_path / "keytab", 0, 0)
    (tmp_path / "keytab").chmod(mode)
    found = await only(tmp_path, "problem", **given)
    assert who in found.text
    assert "chmod" in found.cure


async def test_keytab_without_a_pop3_service(tmp_path: Path) -> None:
    given = sections(tmp_path, record("host/mail.a.test@A.TEST"), record("imap/mail.a.test@A.TEST"))
    found = await only(tmp_path, "problem", **given)
    assert "no key of a POP3 service (pop/HOST), but host/mail.a.test@A.TEST, imap/mail.a.test@A.TEST" in found.text


@pytest.mark.parametrize("other", ["pop/MAIL.A.TEST@A.TEST", "pop/mail@A.TEST", "pop/mail.a.test@B.TEST"])
async def test_keytab_with_nearly_the_right_name(tmp_path: Path, other: str) -> None:
    found = await only(tmp_path, "problem", **sections(tmp_path, record(other)))
    assert f"has no key of {PRINCIPAL}, but {other}" in found.text
    assert "write it under principals" in found.cure


async def test_key_that_is_too_weak(tmp_path: Path) -> None:
    found = await only(tmp_path, "warning", **sections(tmp_path, record(PRINCIPAL, 4, RC4), record(PRINCIPAL, 3)))
    assert f"only weak keys of {PRINCIPAL} (arcfour-hmac)" in found.text
    assert await look(tmp_path, **sections(tmp_path, record(PRINCIPAL, 4, RC4), record(PRINCIPAL, 4))) == []


async def test_key_whose_name_is_not_listed(tmp_path: Path) -> None:
    found = await only(tmp_path, "warning", **sections(tmp_path, record(PRINCIPAL), record(OLD)))
    assert f"tickets for {OLD} are refused" in found.text
    listed = sections(tmp_path, record(PRINCIPAL), record(OLD), listeners={"old": {"principals": [OLD]}})
    assert await look(tmp_path, **listed) == [], "another listener takes them"


async def test_each_listener_has_findings_of_its_own(tmp_path: Path) -> None:
    own = {"keytab": str(tmp_path / "own"), "principals": [OLD]}
    given = sections(tmp_path, record(PRINCIPAL), listeners={"same": None, "old": own})
    found = await only(tmp_path, "problem", **given)
    assert found.area == "kerberos at old"
    (tmp_path / "own").write_bytes(keytab(record(OLD)))
    (tmp_path / "own").chmod(0o600)
    give(tmp_path / "own")
    assert await look(tmp_path, **given) == []
    everything = await check_environment(load_file(tmp_path / "popproxy.yaml"), offline=True)
    assert {f.area for f in everything} >= {"kerberos at pop3, same", "kerberos at old"}


@pytest.mark.parametrize(
    ("principal", "text"),
    [
        ("pop/Mail.A.Test@A.TEST", "clients ask for mail.a.test"),
        ("pop/mail@A.TEST", "the full name"),
        ("pop/192.0.2.1@A.TEST", "names only"),
    ],
)
async def test_names_that_no_client_asks_for(tmp_path: Path, principal: str, text: str) -> None:
    found = await only(tmp_path, "warning", **sections(tmp_path, record(principal), principals=[principal]))
    assert text in found.text


async def test_replay_cache_that_is_not_there(tmp_path: Path) -> None:
    found = await only(tmp_path, "problem", **sections(tmp_path, record(PRINCIPAL), replay_cache=str(tmp_path / "no")))
    assert found.cure.startswith("install -d -m 700")
    assert "no ticket is accepted" in found.text


@pytest.mark.parametrize(
    ("owner", "mode", "text"),
    [
        (0, 0o755, "cannot be written by nobody"),
        (1, 0o700, "cannot be written by nobody"),
        (1, 0o775, "cannot be written by nobody"),
        (65534, 0o777, "everybody can write"),
    ],
)
async def test_replay_cache_of_somebody_else(tmp_path: Path, owner: int, mode: int, text: str) -> None:
    assert os.geteuid() == 0, "run as root: directories of another owner are needed"
    given = sections(tmp_path, record(PRINCIPAL))
    os.chown(tmp_path / "replay", owner, owner)
    (tmp_path / "replay").chmod(mode)
    assert text in (await only(tmp_path, "problem", **given)).text


async def test_replay_cache_that_its_owner_could_empty(tmp_path: Path) -> None:
    given = sections(tmp_path, record(PRINCIPAL))
    os.chown(tmp_path / "replay", 1, pwd.getpwnam("nobody").pw_gid)
    (tmp_path / "replay").chmod(0o770)
    assert "belongs to daemon, who could empty it" in (await only(tmp_path, "problem", **given)).text


async def test_replay_cache_that_root_has_begun(tmp_path: Path) -> None:
    given = sections(tmp_path, record(PRINCIPAL))
    file = tmp_path / "replay" / "popproxy.rcache2"
    file.touch(mode=0o600)
    found = await only(tmp_path, "problem", **given)
    assert "belongs to root, not to nobody" in found.text
    assert found.cure == f"chown nobody {file}"


# What name servers and KDCs say


GROUP = Acceptors(("pop3",), Path("keytab"), (PRINCIPAL,))


def dns(monkeypatch: pytest.MonkeyPatch, canonical: str, reverse: str | None) -> list[Finding]:
    """The findings where mail.a.test is an alias of `canonical`, and its address belongs to `reverse`."""

    def forward(host: str, *_: object, **__: object) -> list[Any]:
        assert host == "mail.a.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, canonical, ("192.0.2.1", 0))]

    def backward(_address: object, _flags: int) -> tuple[str, str]:
        if reverse is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return reverse, "0"

    monkeypatch.setattr(socket, "getaddrinfo", forward)
    monkeypatch.setattr(socket, "getnameinfo", backward)
    return list(_names(GROUP, "mail.a.test"))


@pytest.mark.parametrize("reverse", ["mail.a.test", "MAIL.A.TEST.", None])
def test_dns_that_says_the_same(monkeypatch: pytest.MonkeyPatch, reverse: str | None) -> None:
    (found,) = dns(monkeypatch, "mail.a.test", reverse)
    assert found.level == "ok"


def test_alias_in_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = dns(monkeypatch, "host7.a.test", "host7.a.test")
    assert found.level == "warning"
    assert "ticket for pop/host7.a.test" in found.text
    assert "dns_canonicalize_hostname = false" in found.cure


def test_address_with_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = dns(monkeypatch, "mail.a.test", "host7.a.test")
    assert found.level == "warning"
    assert "ticket for pop/host7.a.test" in found.text
    assert "rdns = false" in found.cure


def test_host_that_does_not_resolve() -> None:
    (found,) = _names(GROUP, "no-such-host.invalid")
    assert found.level == "warning"
    assert "does not resolve" in found.text


@pytest.mark.parametrize(
    ("ahead", "level", "text"),
    [
        (0, "ok", "agrees"),
        (-29, "ok", "agrees"),
        (45, "warning", "45 s behind that of the KDC of A.TEST"),
        (-300, "problem", "300 s ahead of that of the KDC of A.TEST: tickets are refused"),
    ],
)
def test_clocks(ahead: int, level: str, text: str) -> None:
    (found,) = _clock("A.TEST", KdcAnswer(1, "aes", ahead))
    assert found.level == level
    assert text in found.text
