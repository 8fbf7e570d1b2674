"""A web service that judges passwords and says where the mail is, asked as nginx asks its auth_http."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from popproxy.config.model_directories import AuthHttp
from popproxy.config.units import parse_server
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.errors import Unavailable
from popproxy.net.header_http import Answered, HeaderHttp
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential
from popproxy.state.gate import Gate
from popproxy.types import Address, AuthFailure, Location, Secret, Visit

NOBODY: Final = "popproxy-check-nobody@popproxy.invalid"

_ANSWERED = frozenset(("auth-status", "auth-server", "auth-port", "auth-user", "auth-pass", "auth-error-code"))
# what nginx escapes, and DEL
_UNSAFE = re.compile(rb"[\x00-\x20%\x7f]")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CODE = re.compile(r"\[([A-Z/-]+)\]")


class AuthHttpDirectory:
    """See Directory and DigestJudge. The protocol is that of ngx_mail_auth_http_module.

    The service cannot say that it does not know a user, so whoever it refuses may be a user of another directory. It
    has no word for its own failures either: what counts as one, beside HTTP status 5xx, is an Auth-Error-Code that
    begins with 4 (as SMTP has it), a response code of POP3 at the beginning of Auth-Status that speaks of trouble, and
    what `temporary` of the configuration matches.
    """

    kind = "http"

    def __init__(self, name: str, config: AuthHttp, keys: Mapping[str, Secret], http: HeaderHttp, gate: Gate) -> None:
        self.name = name
        self._temporary = re.compile(config.temporary)
        self._keys = [(header, secret.reveal().decode("utf-8", "surrogateescape")) for header, secret in keys.items()]
        self._http = http
        self._gate = gate

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """Method plain. See Directory."""
        if not password:
            return Refused(AuthFailure.EMPTY)
        return await self._ask("plain", user, password, None, visit)

    async def verify_digest(self, user: str, credential: ApopCredential | CramMd5Credential) -> Answer:
        """Methods apop and cram-md5, for which the service must have the secret in clear. See DigestJudge."""
        if isinstance(credential, ApopCredential):
            return await self._ask("apop", user, credential.digest, credential.timestamp, credential.visit)
        return await self._ask("cram-md5", user, credential.digest, credential.challenge, credential.visit)

    async def find(self, user: str) -> Answer:
        """Method none, with which nginx asks where mail goes that nobody has logged in for. See Directory."""
        return await self._ask("none", user, Secret(""), None, None)

    async def close(self) -> None:
        """Give back the connections."""
        await self._gate.close()
        await self._http.close()

    async def _ask(self, method: str, user: str, proof: Secret, salt: bytes | None, visit: Visit | None) -> Answer:
        headers = [("Auth-Method", method), ("Auth-User", escape(user.encode())), ("Auth-Pass", escape(proof.reveal()))]
        if salt is not None:
            headers.append(("Auth-Salt", salt.decode("ascii")))
        headers.append(("Auth-Protocol", "pop3"))
        if visit is not None:
            headers += _circumstances(visit)
        headers += self._keys
        try:
            return self._read(await self._gate.run(lambda: self._http.ask(headers)))
        except Unavailable as error:
            text = str(error)
            raise Unavailable(
                text if text.startswith(f"{self.name}: ") else f"{self.name}: {text}", error.reason
            ) from None

    def _read(self, answered: Answered) -> Answer:
        fields = _fields(answered.headers)
        verdict = fields.get("auth-status")
        if verdict is None or answered.status >= 500 or 300 <= answered.status < 400:
            raise Unavailable(
                f"it answers with HTTP status {answered.status}" + ("" if verdict else ", no Auth-Status")
            )
        if verdict == "OK":
            return _entry(fields)
        code = _CODE.match(verdict)
        trouble = code is not None and code[1] != "AUTH"
        if trouble or fields.get("auth-error-code", "").startswith("4") or verdict == "WAIT":
            raise Unavailable("it says that it is out of order")
        if self._temporary.search(verdict):
            raise Unavailable("it says that it is out of order (temporary)")
        return Refused(stranger=True)


def escape(octets: bytes) -> str:
    """For Auth-User and Auth-Pass, as nginx escapes them; and what is not UTF-8, which cannot go through here."""
    escaped = _UNSAFE.sub(_percent, octets)
    try:
        return escaped.decode()
    except UnicodeDecodeError:
        return _NOT_ASCII.sub(_percent, escaped).decode()


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]


def _circumstances(visit: Visit) -> Iterator[tuple[str, str]]:
    yield "Auth-Login-Attempt", str(visit.attempt)
    yield "Client-IP", visit.client.host.partition("%")[0]
    if not visit.tls:
        return
    yield "Auth-SSL", "on"
    if visit.certificate is not None:
        from cryptography import x509  # noqa: PLC0415 - large, and few clients show a certificate
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

        certificate = x509.load_der_x509_certificate(visit.certificate)
        yield "Auth-SSL-Verify", "SUCCESS"
        yield "Auth-SSL-Subject", _visible(certificate.subject.rfc4514_string())
        yield "Auth-SSL-Issuer", _visible(certificate.issuer.rfc4514_string())
        yield "Auth-SSL-Serial", f"{certificate.serial_number:X}"
        yield "Auth-SSL-Fingerprint", certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - nginx's choice


def _visible(name: str) -> str:
    """Without control characters, which would end a header (RFC 4514 section 2.4 has this form)."""
    return _CONTROL.sub(lambda found: f"\\{ord(found[0]):02X}", name)


def _fields(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What the answer says. Raises Unavailable if it says something twice."""
    fields: dict[str, str] = {}
    for name, value in headers:
        if name in _ANSWERED:
            if name in fields:
                raise Unavailable(f"its answer has two headers {name}")
            fields[name] = value
    return fields


def _entry(fields: Mapping[str, str]) -> Entry:
    user = fields.get("auth-user") or None
    if user is not None and not user.isprintable():
        raise Unavailable("what Auth-User holds is not a name")
    given = fields.get("auth-pass")
    password = Secret(given.encode("utf-8", "surrogateescape")) if given else None
    location = Location(None, _server(fields), user, password)
    return Entry(None, None if location == Location() else location)


def _server(fields: Mapping[str, str]) -> Address | None:
    host, port = fields.get("auth-server"), fields.get("auth-port")
    if not host:
        return None
    try:
        try:
            address = Address(str(ipaddress.ip_address(host)), 0)
        except ValueError:
            address = parse_server(host)
    except ValueError:
        raise Unavailable("what Auth-Server holds is not a server") from None
    if port is None:
        return address
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise Unavailable("what Auth-Port holds is not a port")
    return Address(address.host, int(port))
