"""The real peers as fixtures, their logs beside every failing test, and the search for secrets over the whole run."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
import uvloop

from popproxy.auth import hashes
from tests.peers import profiles
from tests.peers.canaries import WATCH
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.hashes import ssha512
from tests.peers.process import LOGS, REPOSITORY, public_directory
from tests.peers.proxy import StartProxy, proxies

_LOG_TAIL = 6000

pytest.register_assert_rewrite("tests.pop3.helpers")
profiles.load()  # before any test module reads the defaults


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loops that a test runs on: asyncio's, and for those marked `every_loop` uvloop's as well."""
    every = item.get_closest_marker("every_loop") is not None
    return {"asyncio": asyncio.new_event_loop} | ({"uvloop": uvloop.new_event_loop} if every else {})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the two loops, `make check` takes the one that `popproxy serve` runs on."""
    for item in items:
        if item.get_closest_marker("every_loop") and "asyncio" in item.name.partition("[")[2].rstrip("]").split("-"):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import stay to the end: nobody need look there for garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """libkrb5 reads krb5.conf once for a thread, and a test may live in another realm than the one before it."""
    libkrb5 = sys.modules.get("popproxy.kerberos.libkrb5")
    if libkrb5 is not None:
        vars(libkrb5._contexts).clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Shows the end of every running peer's log with a test that fails."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for title, log in LOGS.items():
            if log.exists():
                report.sections.append((f"log of {title}", log.read_text(errors="replace")[-_LOG_TAIL:]))
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_any_output() -> Iterator[None]:
    """Fails the run if a password turned up in what popproxy wrote (`tests/peers/canaries.py`)."""
    yield
    if WATCH.found:  # so that `make test` gives no second chance
        (REPOSITORY / ".venv" / "secrets-found").touch()
    assert not WATCH.found, "secrets in popproxy's output:\n" + "\n".join(WATCH.found)


@pytest.fixture(scope="session", autouse=True)
def base_directory_lets_others_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A service that has given up root must get to its files below; pytest-xdist makes one more private directory."""
    tmp_path_factory.getbasetemp().chmod(0o755)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A service that ran inside a test has set up the logging of the whole process: undo it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def quick_dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown users cost no more than a hash of this kind; what they must cost is for `auth/test_hashes.py` to say."""
    stored = ssha512("nobody has this password")
    monkeypatch.setattr(hashes, "_dummy_hash", lambda: stored)


@pytest.fixture(scope="session")
def certificates() -> Iterator[Path]:
    """A directory for keys and certificates."""
    with public_directory("certificates") as directory:
        yield directory


@pytest.fixture(scope="session")
def authority(certificates: Path) -> Authority:
    """The certificate authority that clients trust."""
    return Authority(certificates)


@pytest.fixture(scope="session")
def server_certificate(authority: Authority) -> CertificateFiles:
    """For localhost, 127.0.0.1 and ::1."""
    return authority.server()


@pytest.fixture
def start_proxy() -> Iterator[StartProxy]:
    """Starts popproxy with a configuration; stopped, and its output searched for secrets, after the test."""
    with proxies() as start:
        yield start
