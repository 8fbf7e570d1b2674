"""``popproxy vault``: what proves users, encrypted at rest."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popproxy.app.checks.finding import counted
from popproxy.app.checks.permissions import make_directory
from popproxy.cli.exits import CommandError, ExitCode, complain
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, StdinOption
from popproxy.cli.output import print_json
from popproxy.cli.passwords import read_secret
from popproxy.errors import VaultError
from popproxy.types import Secret
from popproxy.vault.record import Kind

if TYPE_CHECKING:
    from popproxy.config.model import Config
    from popproxy.config.model import Vault as VaultSection
    from popproxy.vault.store import Change, Vault

app = typer.Typer(
    no_args_is_help=True,
    help="""Edit the vault: what proves users, encrypted at rest.

    Passwords in clear are needed for APOP and CRAM-MD5, and to log in at backends that get no password from the client.
    SCRAM needs verifiers, from which no password can be had; RPOP the hash of an id. File and key of the vault come
    from the section vault of the configuration. Secrets are asked for or read from standard input, never given as
    arguments.""",
)

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user, as popproxy knows it.")]
KIND_HELP = """password: in clear, proves the user, and logs in at servers. scram: verifiers, good for SCRAM only.
rpop: an id, hashed. backend: the password at the server behind, which proves nobody here. refresh-token: OAuth's, for
the server behind."""
_WHAT = {
    Kind.PASSWORD: "Secret",
    Kind.SCRAM: "Password",
    Kind.RPOP: "RPOP id",
    Kind.BACKEND: "Password at the server behind",
    Kind.REFRESH_TOKEN: "Refresh token",
}
_MANY = {Kind.PASSWORD: "secret", Kind.SCRAM: "secret", Kind.BACKEND: "password", Kind.REFRESH_TOKEN: "refresh token"}


@app.command()
def init(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Make an empty vault, and a key for it if its file does not exist yet.

    The key belongs into vault.key.file, or into an environment variable or systemd credential; then it must be there
    first.

    For example:

        popproxy vault init

        popproxy vault init -c ./popproxy.yaml
    """
    section = _section(config)
    from popproxy.config.secret import resolve_secret  # noqa: PLC0415
    from popproxy.vault.format import generate_key  # noqa: PLC0415
    from popproxy.vault.store import Vault  # noqa: PLC0415

    if section.file.exists():
        raise CommandError(f"{section.file} exists already; nothing was done", ExitCode.CANTCREAT)
    new_key = section.key.file if section.key.file is not None and not section.key.file.exists() else None
    _require_directories([section.file, *([new_key] if new_key else [])], config)
    if new_key:
        _write_key(new_key, Secret(generate_key()))
    try:
        Vault.create(section.file, resolve_secret(section.key))
    except BaseException:
        if new_key:
            new_key.unlink()  # nothing is encrypted with it
        raise
    _give_to_service(section.file, config)
    if new_key:
        print(f"key:   {new_key}   keep a copy elsewhere: without it the vault is lost")
    print(f"vault: {section.file}")


@app.command("set")
def set_(
    user: UserArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    stdin: StdinOption = False,
    kind: Annotated[Kind, typer.Option(help=KIND_HELP)] = Kind.PASSWORD,
) -> None:
    """Keep a secret for USER, replacing the one before.

    For example:

        popproxy vault set alice

        popproxy vault set alice --kind scram

        popproxy vault set alice --kind backend

        pass show mail/alice | popproxy vault set alice --stdin
    """
    vault = _open(config)
    name = _canonical(user, config)
    secret = read_secret(f"{_WHAT[kind]} of {name}", stdin)
    vault.change({name: _setter(kind, secret)})
    print(f"{name}: set")


def _setter(kind: Kind, secret: Secret) -> Change:
    if kind is Kind.RPOP:
        from popproxy.auth.hashes import hash_password  # noqa: PLC0415

        secret = Secret(hash_password(secret.reveal()))
    return lambda record: record.with_kind(kind, secret)


@app.command("list")
def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List the users, and what is kept for them. Secrets are never shown.

    For example:

        popproxy vault list

        popproxy vault list --json
    """
    kinds = {user: [kind.value for kind in record.kinds] for user, record in _open(config).records()}
    if as_json:
        print_json({"users": list(kinds), "kinds": kinds})
    else:
        sys.stdout.writelines(f"{user}  {' '.join(found)}\n" for user, found in kinds.items())


@app.command()
def remove(
    user: UserArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    kind: Annotated[Kind | None, typer.Option(help="Forget only this; by default, everything.")] = None,
) -> None:
    """Forget what is kept for USER.

    For example:

        popproxy vault remove alice

        popproxy vault remove alice --kind rpop
    """
    vault = _open(config)
    name = _canonical(user, config)
    if not vault.remove(name, kind):
        what = "nothing" if kind is None else f"no {kind.value}"
        raise CommandError(f"{name} has {what} in the vault; see: popproxy vault list", ExitCode.NOINPUT)
    print(f"{name}: removed")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Lines user:secret; - is standard input.")],
    config: ConfigOption = DEFAULT_CONFIG,
    kind: Annotated[Kind, typer.Option(help="What the secrets are: as in `popproxy vault set`.")] = Kind.PASSWORD,
) -> None:
    """Keep many secrets at once, from lines user:secret. All of them or, if a line is wrong, none.

    For example:

        popproxy vault import secrets.txt && shred -u secrets.txt

        popproxy vault import --kind backend secrets.txt && shred -u secrets.txt

        gpg -d secrets.gpg | popproxy vault import -
    """
    if kind is Kind.RPOP:
        raise CommandError("RPOP ids are set one by one: popproxy vault set USER --kind rpop", ExitCode.USAGE)
    vault = _open(config)
    octets = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        lines = octets.decode().split("\n")
    except UnicodeDecodeError:
        raise CommandError(f"{file}: is not UTF-8; nothing was done", ExitCode.DATAERR) from None
    rules = _config(config).authentication
    from popproxy.auth.names import canonical  # noqa: PLC0415

    name = partial(canonical, default_domain=rules.default_domain, case=rules.case)
    try:
        count = vault.import_lines(lines, canonical=name, source=str(file), kind=kind)
    except VaultError as error:
        raise CommandError(str(error), ExitCode.DATAERR) from None
    print(f"{counted(count, _MANY[kind])} imported")


@app.command()
def rekey(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Encrypt the vault with a new key.

    The new key is written next to the old one (.new), the vault is encrypted with it, then the new key takes the old
    one's place. It may break off at any moment: popproxy finds the key in either place, and the next rekey finishes
    what is left. Only for a key in a file. A running popproxy goes on with the new key if its user may read it.

    For example:

        popproxy vault rekey
    """
    section = _section(config)
    if section.key.file is None:
        text = "the key is not in a file; popproxy cannot put a new one in its place"
        raise CommandError(text, ExitCode.CONFIG)
    from popproxy.vault.keys import rotate  # noqa: PLC0415

    done = "the vault has a new key" if rotate(section) else "an earlier rekey is finished: the vault has its new key"
    print(f"{done}: {section.key.file}; {_what_next(section.key.file, config)}")


def _what_next(key: Path, path: Path) -> str:
    """What is to be done for a running popproxy."""
    from popproxy.app.checks.permissions import account, may  # noqa: PLC0415

    rules = _config(path).process
    service = account(rules.user)
    if service is None or may(key, os.R_OK, service, rules.group):
        return "a running popproxy goes on with it"
    return f"restart popproxy, because {service.pw_name} may not read it"


def _config(path: Path) -> Config:
    from popproxy.config.loader import load  # noqa: PLC0415

    return load(path)


def _section(path: Path) -> VaultSection:
    section = _config(path).vault
    if section is None:
        cure = "write for example: vault: {file: /etc/popproxy/vault, key: {file: /etc/popproxy/vault.key}}"
        raise CommandError(f"{path}: there is no section vault; {cure}", ExitCode.CONFIG)
    return section


def _require_directories(files: list[Path], path: Path) -> None:
    """Raises CommandError unless every one of `files` can be made where it is to be."""
    owner = _config(path).process.user
    directories = dict.fromkeys(file.parent for file in files)
    missing = [directory for directory in directories if not directory.is_dir()]
    if missing:
        cures = [f"{directory} is no directory; make it: {make_directory(directory, owner)}" for directory in missing]
        raise CommandError("\n".join(cures), ExitCode.CANTCREAT)
    for directory in directories:
        if not os.access(directory, os.W_OK | os.X_OK):
            text = f"{directory} cannot be written by this user; run this as root, or correct its permissions"
            raise CommandError(text, ExitCode.NOPERM)


def _open(path: Path) -> Vault:
    section = _section(path)
    from popproxy.vault.keys import vault_key  # noqa: PLC0415
    from popproxy.vault.store import Vault  # noqa: PLC0415

    return Vault.open(section.file, vault_key(section))


def _canonical(user: str, path: Path) -> str:
    """The name under which a login looks for its secret."""
    from popproxy.auth.names import NameRefused, canonical, check_name  # noqa: PLC0415

    rules = _config(path).authentication
    try:
        return canonical(check_name(os.fsencode(user)), rules.default_domain, rules.case)
    except NameRefused as refused:
        raise CommandError(f"that is no user name ({refused.reason.value})", ExitCode.USAGE) from None


def _give_to_service(file: Path, path: Path) -> None:
    """The proxy opens the vault after it has become process.user; the key it reads before."""
    user = _config(path).process.user
    if user is not None and os.geteuid() == 0:
        try:
            shutil.chown(file, user)
        except LookupError:
            complain([f"warning: the user {user} does not exist yet; give {file} to it once it does"])


def _write_key(path: Path, key: Secret) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.reveal() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()  # half a key would be taken for one the next time
        raise
