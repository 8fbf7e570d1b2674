"""``popproxy check`` about issuers of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from popproxy.app.check import check_environment
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers.certs import Authority
from tests.peers.issuer import Key, issuing


async def look(directory: Path, entry: dict[str, Any], *, offline: bool = False) -> list[tuple[str, str]]:
    """Level and text of what is said about the issuer."""
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "sasl": ["OAUTHBEARER"]}
    secret = directory / "master"
    secret.write_text("canary-pw-master")
    secret.chmod(0o600)
    pool = {
        "servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["forward", "master"],
        "master": {"user": "m", "password": {"file": str(secret)}},
    }  # fmt: skip
    path = write_config(
        directory, listeners=[listener], pools={"main": pool}, oauth={"issuers": [entry], "deadline": "20s"}
    )
    findings = await check_environment(load_file(path), offline=offline)
    return [(one.level, f"{one.text} {one.cure}".strip()) for one in findings if one.area.startswith("issuer https://")]


async def test_issuer_with_keys(authority: Authority, tmp_path: Path) -> None:
    with issuing(authority, Key(), Key("two", "RS256")) as issuer:
        assert await look(tmp_path, issuer.section()) == [("ok", "sends 2 keys that can be used")]
        assert await look(tmp_path, issuer.section(), offline=True) == []
        ((level, text),) = await look(tmp_path, issuer.section(algorithms=["ES384"]))
        assert (level, text.partition(" is it up")[0]) == ("problem", f"{issuer.url} has no key for ES384")
        ((level, text),) = await look(tmp_path, issuer.section(ca=str(tmp_path / "nothing.pem")))
        assert level == "problem"
        assert "name a file of CA certificates" in text
    ((level, text),) = await look(tmp_path, issuer.section())
    assert level == "problem"
    assert "Connect" in text or "refused" in text


async def test_issuer_that_is_asked(authority: Authority, tmp_path: Path) -> None:
    with issuing(authority) as issuer:
        entry = issuer.introspecting(tmp_path)
        assert await look(tmp_path, entry) == [("ok", "answers questions of popproxy about tokens")]
        (tmp_path / "oauth.secret").write_text("canary-pw-wrong")
        ((level, text),) = await look(tmp_path, entry)
        assert level == "problem"
        assert "HTTP status 401" in text
        (tmp_path / "oauth.secret").unlink()
        ((level, text),) = await look(tmp_path, entry, offline=True)
        assert (level, "there is no such file" in text) == ("problem", True)
