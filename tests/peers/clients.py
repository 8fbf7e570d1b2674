"""Real mail clients, all made to do the same two things: fetch everything, and take away every message below a size.

Each runner undoes or switches off what its client adds to a message, so that what it returns can be compared with
`tests.peers.messages.wire` of the maildrop octet for octet.
"""

from __future__ import annotations

import abc
import poplib
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tests.peers.certs import CertificateFiles
from tests.peers.messages import wire
from tests.peers.programs import ClientFailedError, run, run_on_terminal

# mutt writes the length of the body at the end of the header of every message that it files
_ADDED_BY_MUTT = re.compile(rb"\r\nContent-Length: \d+\r\nLines: \d+\r\n\r\n")

Transport = Literal["plain", "stls", "tls"]
Auth = Literal[
    "user", "apop", "rpop", "plain", "login", "cram-md5", "scram-sha-1", "scram-sha-256", "external", "oauthbearer",
    "xoauth2",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Account:
    """Where and how to log in. `user` is USER and PASS; `apop` and `rpop` are commands, the others SASL mechanisms.

    `password` is what the mechanism takes: also an id for RPOP, or a token. `certificate` is the client's own.
    """

    port: int
    user: str
    password: str
    ca: Path
    transport: Transport = "plain"
    auth: Auth = "user"
    host: str = "localhost"
    certificate: CertificateFiles | None = None


class Client(abc.ABC):
    """A mail client. `directory` is empty and the client's alone; it is its home directory, too."""

    name: ClassVar[str]
    auths: ClassVar[tuple[Auth, ...]] = ("user",)
    transports: ClassVar[tuple[Transport, ...]] = ("plain", "stls", "tls")

    def ways(self) -> list[tuple[Transport, Auth]]:
        """How it can log in."""
        return [(transport, auth) for transport in self.transports for auth in self.auths]

    @abc.abstractmethod
    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        """Every message, in wire form, in any order. Nothing is deleted."""

    @abc.abstractmethod
    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        """Fetches the messages of less than `limit` octets and deletes just these."""


def _private(path: Path, text: str) -> Path:
    """Writes a file with a password in it; several clients insist that nobody else may read it."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _maildir(path: Path) -> Path:
    for part in ("cur", "new", "tmp"):
        (path / part).mkdir(parents=True, exist_ok=True)
    return path


def _delivery_agent(directory: Path, linger: float = 0) -> tuple[Path, Path]:
    """A directory, and a program that writes its standard input into a file there, and lives `linger` seconds on."""
    inbox, program = directory / "inbox", directory / "deliver"
    inbox.mkdir()
    program.write_text(f'#!/bin/sh\ncat >"$(mktemp {inbox}/XXXXXXXX)" && exec sleep {linger}\n')
    program.chmod(0o755)
    return inbox, program


def _files(inbox: Path) -> list[bytes]:
    return [wire(file.read_bytes()) for file in inbox.iterdir()]


def _contents(maildir: Path) -> list[bytes]:
    return [wire(file.read_bytes()) for part in ("new", "cur") for file in (maildir / part).iterdir()]


class Curl(Client):
    """Reads by address (`pop3://host/2`), deletes by a request of its own (`-X "DELE 2"`), all in one session."""

    name = "curl"
    auths = ("user", "apop", "plain", "login")
    _scheme: ClassVar[dict[Transport, str]] = {"plain": "pop3", "stls": "pop3", "tls": "pop3s"}

    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        return self._retrieve(account, directory, list(self.sizes(account, directory)))

    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        small = [number for number, size in self.sizes(account, directory).items() if size < limit]
        return self._retrieve(account, directory, small, delete=True)

    def sizes(self, account: Account, directory: Path) -> dict[int, int]:
        """LIST: octets by message number."""
        lines = self.request(account, directory, "").split("\r\n")
        return {int(number): int(size) for number, size in (line.split() for line in lines if line)}

    def request(self, account: Account, directory: Path, command: str) -> str:
        """The body of the reply to any command with a multi-line reply; an empty command is LIST."""
        options = ["-X", command] if command else []
        return run(["curl", *self._login(account, directory), *options, self._url(account)], directory)

    def _retrieve(self, account: Account, directory: Path, numbers: list[int], *, delete: bool = False) -> list[bytes]:
        login = self._login(account, directory)
        command: list[str] = []
        for number in numbers:
            command += ["--next"] * bool(command) + [*login, "-o", f"{number}.eml", f"{self._url(account)}{number}"]
            if delete:
                command += ["--next", *login, "--head", "-X", f"DELE {number}", self._url(account)]
        run(["curl", *command], directory)
        # curl delivers the body as it came, with the line ends of the wire and without the dots added for it
        return [(directory / f"{number}.eml").read_bytes() for number in numbers]

    def _url(self, account: Account) -> str:
        return f"{self._scheme[account.transport]}://{account.host}:{account.port}/"

    @staticmethod
    def _login(account: Account, directory: Path) -> list[str]:
        bearer = account.auth in ("oauthbearer", "xoauth2")  # of which it prefers the first, whatever it is told
        without = bearer or account.certificate is not None
        text = f'user = "{account.user}:{"" if without else account.password}"\n'
        text += f'cacert = "{account.ca}"\nsilent\nshow-error\nfail\n'
        if bearer:
            text += f'oauth2-bearer = "{account.password}"\n'
        if account.certificate is not None:
            text += f'cert = "{account.certificate.cert}"\nkey = "{account.certificate.key}"\n'
        if account.transport == "stls":
            text += "ssl-reqd\n"
        if account.auth != "user":
            mechanism = "+APOP" if account.auth == "apop" else account.auth.upper()
            text += f'login-options = "AUTH={mechanism}"\n'
        return ["--config", str(_private(directory / "curlrc", text))]


class Fetchmail(Client):
    """Hands each message to a program; `invisible` keeps it from adding a Received line."""

    name = "fetchmail"
    auths = ("user", "apop")
    _tls: ClassVar[dict[Transport, str]] = {
        "plain": "sslproto ''",
        "stls": "sslproto 'TLS1.2+' sslcertck",
        "tls": "ssl sslcertck",
    }

    def ways(self) -> list[tuple[Transport, Auth]]:
        return [way for way in super().ways() if way != ("stls", "apop")]  # with `protocol apop` it never asks for STLS

    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        return self._poll(account, directory, "keep")

    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        return self._poll(account, directory, f"nokeep limit {limit - 1}")

    def _poll(self, account: Account, directory: Path, options: str) -> list[bytes]:
        inbox, deliver = _delivery_agent(directory)
        protocol = account.auth if account.auth in ("apop", "rpop") else "pop3"
        how = account.auth if account.auth == "cram-md5" else "password"
        _private(
            directory / "fetchmailrc",
            f"set invisible\nset idfile {directory}/ids\n"
            f"poll {account.host} service {account.port} protocol {protocol} auth {how}\n"
            f"  user '{account.user}' password '{account.password}' fetchall no rewrite pass8bits no mimedecode\n"
            f"  {self._tls[account.transport]} sslcertfile {account.ca} mda '{deliver}' {options}\n",
        )
        files = ["-f", str(directory / "fetchmailrc"), "--pidfile", str(directory / "fetchmail.pid")]
        run(["fetchmail", "-v", "-N", "--nosyslog", "--nodetach", *files], directory)
        return _files(inbox)


class Mpop(Client):
    """Pipelines by itself when the server says it can, and whatever the server says with `pipelining on`."""

    name = "mpop"
    auths: ClassVar[tuple[Auth, ...]] = ("user", "apop", "plain", "login")
    pipelining: ClassVar[Literal["auto", "on", "off"]] = "auto"

    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        return self._poll(account, directory, "keep on")

    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        return self._poll(account, directory, f"keep off\nskipsize {limit}")

    def _poll(self, account: Account, directory: Path, options: str) -> list[bytes]:
        inbox = _maildir(directory / "inbox")
        tls = "tls off" if account.transport == "plain" else f"tls on\ntls_trust_file {account.ca}"
        if account.certificate is not None:
            tls += f"\ntls_cert_file {account.certificate.cert}\ntls_key_file {account.certificate.key}"
        _private(
            directory / "mpoprc",
            f"account default\nhost {account.host}\nport {account.port}\n"
            f"auth {account.auth}\nuser {account.user}\npassword {account.password}\n"
            f"{tls}\ntls_starttls {'on' if account.transport == 'stls' else 'off'}\n"
            f"pipelining {self.pipelining}\nreceived_header off\nuidls_file {directory}/uidls\n"
            f"delivery maildir {inbox}\n{options}\n",
        )
        run(["mpop", "--debug", "--file", str(directory / "mpoprc")], directory)
        return _contents(inbox)


class MpopPipelining(Mpop):
    """mpop that sends many commands at once, asked or not."""

    name = "mpop-pipelining"
    auths = ("user",)
    pipelining = "on"


class MpopOneByOne(Mpop):
    """mpop that waits for each reply."""

    name = "mpop-one-by-one"
    auths = ("user",)
    pipelining = "off"


class Getmail(Client):
    """getmail6; it knows TLS only from the first octet."""

    name = "getmail"
    auths = ("user", "apop")
    transports = ("plain", "tls")

    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        return self._poll(account, directory, "delete = false")

    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        return self._poll(account, directory, f"delete = true\nmax_message_size = {limit - 1}")

    def _poll(self, account: Account, directory: Path, options: str) -> list[bytes]:
        # getmail waits for ever for a child that has exited before it begins to wait (ForkingBase in its sources)
        inbox, deliver = _delivery_agent(directory, linger=0.15)
        retriever = "SimplePOP3SSLRetriever" if account.transport == "tls" else "SimplePOP3Retriever"
        trust = f"ca_certs = {account.ca}\n" if account.transport == "tls" else ""
        _private(
            directory / "getmailrc",
            f"[retriever]\ntype = {retriever}\nserver = {account.host}\nport = {account.port}\n"
            f"username = {account.user}\npassword = {account.password}\nuse_apop = {account.auth == 'apop'}\n{trust}\n"
            f"[destination]\ntype = MDA_external\npath = {deliver}\nallow_root_commands = true\n\n"
            f"[options]\nread_all = true\nreceived = false\ndelivered_to = false\nverbose = 2\n{options}\n",
        )
        output = run(["getmail", f"--getmaildir={directory}", "--rcfile=getmailrc"], directory)
        if "error" in output.lower():
            raise ClientFailedError(output)
        # the command makes up an envelope sender where the server has given none
        return [message.removeprefix(b"Return-Path: <unknown>\r\n") for message in _files(inbox)]


class Mutt(Client):
    """Driven by its keys; copies into a Maildir, whose flags are in file names and not in messages."""

    name = "mutt"
    auths = ("user", "apop", "plain", "login")

    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        return self._play(account, directory, "~A", "<exit>")

    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        pattern = f"~z-{limit - 1}"
        return self._play(account, directory, pattern, f"<delete-pattern>{pattern}<enter><quit>")

    def _play(self, account: Account, directory: Path, pattern: str, ending: str) -> list[bytes]:
        inbox = _maildir(directory / "inbox")
        _private(
            directory / "muttrc",
            f'set folder="{directory}"\nset spoolfile="{directory}/empty"\nset mbox_type=Maildir\n'
            "set confirmappend=no\nset copy=yes\nset delete=yes\nset pop_delete=yes\nset quit=yes\n"
            "set mail_check=0\nset pop_checkinterval=0\nset pop_reconnect=no\nset sleep_time=0\nset wait_key=no\n"
            'set beep=no\nset message_cachedir=""\nset header_cache=""\n'
            f'set pop_pass="{account.password}"\nset pop_authenticators={account.auth}\n'
            f"set ssl_starttls={'yes' if account.transport == 'stls' else 'no'}\n"
            f"set ssl_force_tls={'no' if account.transport == 'plain' else 'yes'}\n"
            f'set ssl_ca_certificates_file="{account.ca}"\nset certificate_file="{directory}/accepted"\n'
            f'push "<tag-pattern>{pattern}<enter><tag-prefix-cond><copy-message><kill-line>{inbox}<enter>{ending}"\n',
        )
        scheme = "pops" if account.transport == "tls" else "pop"
        url = f"{scheme}://{account.user}@{account.host}:{account.port}/"
        run_on_terminal(["mutt", "-n", "-F", str(directory / "muttrc"), "-f", url], directory)
        return [_ADDED_BY_MUTT.sub(b"\r\n\r\n", message, count=1) for message in _contents(inbox)]


class Poplib(Client):
    """Python's own."""

    name = "poplib"
    auths = ("user", "apop")

    def fetch(self, account: Account, directory: Path) -> list[bytes]:
        session = self.login(account)
        messages = [self.retrieve(session, number) for number in self.sizes(session)]
        session.quit()
        return messages

    def take(self, account: Account, directory: Path, limit: int) -> list[bytes]:
        session = self.login(account)
        messages = []
        for number, size in self.sizes(session).items():
            if size < limit:
                messages.append(self.retrieve(session, number))
                session.dele(number)
        session.quit()
        return messages

    @staticmethod
    def login(account: Account, seconds: float = 30) -> poplib.POP3:
        """A session in TRANSACTION."""
        context = ssl.create_default_context(cafile=str(account.ca))
        if account.transport == "tls":
            session: poplib.POP3 = poplib.POP3_SSL(account.host, account.port, context=context, timeout=seconds)
        else:
            session = poplib.POP3(account.host, account.port, timeout=seconds)
        if account.transport == "stls":
            session.stls(context)
        if account.auth == "apop":
            session.apop(account.user, account.password)
        elif account.auth == "rpop":
            session.user(account.user)
            session.rpop(account.password)
        else:
            session.user(account.user)
            session.pass_(account.password)
        return session

    @staticmethod
    def sizes(session: poplib.POP3) -> dict[int, int]:
        """LIST: octets by message number."""
        return {int(number): int(size) for number, size in (line.split() for line in session.list()[1])}

    @staticmethod
    def retrieve(session: poplib.POP3, number: int) -> bytes:
        """One message in wire form."""
        return b"".join(line + b"\r\n" for line in session.retr(number)[1])


CLIENTS: tuple[Client, ...] = (
    Curl(),
    Fetchmail(),
    Mpop(),
    MpopPipelining(),
    MpopOneByOne(),
    Getmail(),
    Mutt(),
    Poplib(),
)
