"""Whose mail is in which pool."""

from __future__ import annotations

from pydantic import Field, model_validator

from popproxy.config.base import Model
from popproxy.config.patterns import Name, Regex
from popproxy.config.units import Duration, LocalPath


class Rule(Model):
    """Sends some users to a pool: exactly one of user, domain, regex, file. The first rule that matches decides."""

    user: str | None = None
    """This user alone."""
    domain: str | None = None
    """Every user of this domain."""
    regex: Regex | None = None
    """Every user whose whole name matches this regular expression."""
    file: LocalPath | None = None
    """A file with a line per user: user, pool, and the backend's name for the user if it differs; between spaces."""
    pool: Name | None = None
    """The pool; with file: the pool for lines that name none."""
    backend_user: str | None = Field(default=None, min_length=1)
    """The user's name at the backend: text with {user}, {local} and {domain}; with regex also \\1 or \\g<name>."""

    @model_validator(mode="after")
    def _one_condition(self) -> Rule:
        given = [name for name in ("user", "domain", "regex", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of user, domain, regex, file, but has {' and '.join(given) or 'none'}; "
                + ("make one rule of each" if given else "write for example domain: example.com")
            )
        if self.pool is None and self.file is None:
            raise ValueError("needs a pool; write for example pool: main")
        return self


class Routing(Model):
    """Which pool serves which user."""

    rules: list[Rule] = []
    """Tried in order; the first match decides."""
    default: Name | None = None
    """Pool for everybody else. Without it, users that no rule matches are refused."""
    default_backend_user: str | None = Field(default=None, min_length=1)
    """The user's name at the default pool: text with {user}, {local} and {domain}."""
    directories: list[Name] = []
    """Directories to ask where a user's mail is, in this order, before the rules are tried. Not needed for users whom
    a directory lets in that says so then."""
    cache: Duration = 60.0
    """How long their answers count."""
    stale: Duration = 86400.0
    """How much longer they count while a directory does not answer."""
    hold_wait: Duration = 30.0
    """How long logins of a user wait whom an operator holds; then the answer is [SYS/TEMP]."""
