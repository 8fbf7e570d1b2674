"""Workers under their supervisor: they die, hang, lose it; and nobody is refused."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.peers.canaries import canary
from tests.peers.line_client import LineClient
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy, StartProxy, fallen, settings
from tests.peers.scripted import ScriptedBackend, in_thread

pytestmark = pytest.mark.long


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with in_thread(ScriptedBackend([b"Subject: hello\r\n\r\nhello\r\n"])) as made:
        yield made


def logged_in(proxy: Proxy, user: str = "alice") -> LineClient:
    client = LineClient(proxy.port())
    assert client.line().startswith(b"+OK")
    assert client.command(f"USER {user}").startswith(b"+OK")
    assert client.command(f"PASS {canary()}").startswith(b"+OK")
    return client


def session_of(proxy: Proxy, user: str) -> int:
    """The worker that has a user's session: the one whose end of the connection it is."""
    peers = {record["source.port"] for record in proxy.audit("login") if record["user.name"] == user}
    for pid in proxy.workers:
        inodes = set()
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(entry))
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = row.split()
            if int(fields[2].rpartition(":")[2], 16) in peers and f"socket:[{fields[9]}]" in inodes:
                return pid
    raise AssertionError(f"no worker has {user}")


def spread(proxy: Proxy) -> dict[int, tuple[str, LineClient]]:
    """A session in each worker."""
    found: dict[int, tuple[str, LineClient]] = {}
    for number in range(200):
        if len(found) == len(proxy.workers):
            return found
        user = f"user{number}"
        client = logged_in(proxy, user)
        found.setdefault(session_of(proxy, user), (user, client))
    raise AssertionError("one worker gets everything")


def change(proxy: Proxy, **sections: object) -> None:
    """Another configuration in the file."""
    proxy.configuration.update(sections)
    proxy.file.write_text(yaml.safe_dump(proxy.configuration, sort_keys=False))


def test_the_death_of_a_worker_costs_its_own_sessions_and_no_count(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address, workers=2))
    sessions = spread(proxy)
    before = proxy.metrics()
    opened = before['popproxy_connections_total{listener="pop3"}']
    (victim, (_, lost)), (_, (_, kept)) = sessions.items()
    for one in (lost, kept):
        assert one.command("DELE 1").startswith(b"+OK")
    wait_until(lambda: len(proxy.audit("dele")) == 2, "the records of what is marked")
    os.kill(victim, signal.SIGKILL)
    with socket.create_connection(("127.0.0.1", proxy.port()), timeout=60) as client:
        assert client.recv(100).startswith(b"+OK")
    assert lost.rest() == b""
    assert kept.command("STAT").startswith(b"+OK")
    wait_until(lambda: len(proxy.workers) == 2 and victim not in proxy.workers, "another worker")
    after = proxy.metrics()
    assert after["popproxy_worker_restarts_total"] == 1
    assert after['popproxy_connections_total{listener="pop3"}'] == opened + 1
    assert not fallen(before, after)
    wait_until(lambda: "a worker has died and is started again" in proxy.log(), "a line in the log")
    wait_until(lambda: bool(proxy.audit("worker_lost")), "the record of its death")
    (record,) = proxy.audit("worker_lost")
    opened_there = [one for one in proxy.audit("login") if one["chain.segment"] == record["popproxy.lost.segment"]]
    assert {one["user.name"] for one in opened_there} >= {sessions[victim][0]}
    assert (record["process.pid"], record["event.reason"], record["message"]) == (
        victim, "killed", "was ended by SIGKILL",
    )  # fmt: skip
    searched = proxy.command("audit", "search", "--session", opened_there[0]["session.id"])
    assert searched.stdout.splitlines()[-1].split()[1:4] == ["-", "-", "worker_lost"], searched.stdout
    verified = proxy.command("audit", "verify", "--no-key")
    assert "its worker died with" in verified.stdout
    (listed,) = json.loads(proxy.command("audit", "lost", "--json").stdout)["sessions"]
    assert (listed["user"], listed["pid"], listed["marked"]) == (sessions[victim][0], victim, 1)
    assert listed["messages"] == [{"number": 1}]
    shown = proxy.command("audit", "lost").stdout
    assert f"popproxy 1.{record['process.name'][-1]} ({victim}) was ended by SIGKILL" in shown, shown
    assert "1 message marked as deleted" in shown


def test_records_that_a_dying_worker_was_given_are_written_by_another(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address, workers=2))
    names = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in proxy.workers}
    first = names["popproxy 1.1"]
    os.kill(first, signal.SIGSTOP)
    proxy.file.write_text(proxy.file.read_text().replace("drain: 1s", "drain: soon"))
    assert proxy.command("reload", "--socket", str(proxy.configuration["control"]["socket"])).returncode == 66
    with contextlib.suppress(ProcessLookupError):  # on a slow machine the supervisor has given it up by now
        os.kill(first, signal.SIGKILL)

    def recorded() -> bool:
        return sorted(one["event.action"] for one in proxy.audit() if "audit_" not in one["event.action"]) == [
            "admin", "config_reload", "worker_lost",
        ]  # fmt: skip

    wait_until(recorded, "what the first worker was to write, and that it is dead")


def test_a_worker_that_dies_alone_is_recorded_by_the_next_one_after_its_start(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address))
    wait_until(lambda: bool(proxy.audit("audit_start")), "its first record")
    os.kill(proxy.worker, signal.SIGKILL)
    wait_until(lambda: bool(proxy.audit("worker_lost")), "the record of its death")
    (record,) = proxy.audit("worker_lost")
    first, second = proxy.audit("audit_start")
    assert record["popproxy.lost.segment"] == first["chain.segment"]
    assert (record["chain.segment"], record["event.sequence"]) == (second["chain.segment"], 2)
    assert proxy.command("reload").returncode == 0
    wait_until(lambda: bool(proxy.audit("config_reload")), "the record of the reload")
    firsts = [one["event.action"] for one in proxy.audit() if one["event.sequence"] == 1]
    assert firsts == ["audit_start"] * 3


def test_a_worker_comes_back_when_there_is_room_for_it_again(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    proxy = start_proxy(settings(backend.address))
    limits = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(proxy.worker, signal.SIGKILL)
    wait_until(lambda: "no worker can be made: Too many open files" in proxy.log(), "the complaint")
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, limits)
    assert logged_in(proxy).command("QUIT").startswith(b"+OK")


def test_one_address_has_so_many_connections_to_all_workers_together(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address, workers=2, limits={"connections_per_address": 8}))
    clients: list[socket.socket] = []
    for other in proxy.workers:
        os.kill(other, signal.SIGSTOP)  # so that four are this one's, and four the other one's
        wait_until(lambda other=other: state_of(other) == "T", "it to stand still")  # type: ignore[misc]
        for _ in range(4):
            clients.append(socket.create_connection(("127.0.0.1", proxy.port()), timeout=60))
            assert clients[-1].recv(200).startswith(b"+OK")
        os.kill(other, signal.SIGCONT)

    def lets_in() -> bool:
        return greeting(proxy).startswith("+OK")

    wait_until(lambda: not any(lets_in() for _ in range(12)), "both workers to refuse one more", 60)
    assert proxy.metrics()['popproxy_connections_refused_total{listener="pop3",reason="address_limit"}'] >= 12
    clients.pop().close()
    wait_until(lets_in, "room again")
    for client in clients:
        client.close()


def test_operators_see_and_end_the_sessions_of_all_workers(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    proxy = start_proxy(settings(backend.address, workers=2))
    sessions = spread(proxy)
    users = {user for user, _ in sessions.values()}
    shown = proxy.command("who")
    assert all(user in shown.stdout for user in users), shown.stdout + shown.stderr
    for user, client in sessions.values():
        ended = proxy.command("kick", user)
        assert ended.stdout == "1 session ended\n", ended.stderr
        assert client.rest().startswith(b"-ERR [SYS/TEMP]")
    assert proxy.command("kick", "nobody-there").returncode == 66
    listed = proxy.command("backends", "list")
    assert listed.stdout.count(backend.address) == 1
    proxy.command("backends", "drain", backend.address)
    for _ in range(6):
        with LineClient(proxy.port()) as client:
            client.line()
            client.command("USER alice")
            assert client.command(f"PASS {canary()}").startswith(b"-ERR [SYS/TEMP]")


def test_workers_end_when_their_supervisor_is_gone(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    proxy = start_proxy(settings(backend.address, workers=2))
    client = logged_in(proxy)
    workers = proxy.workers
    os.kill(proxy.pid, signal.SIGKILL)
    wait_until(lambda: refused(proxy.port()), "the port to be closed")
    assert client.command("STAT").startswith(b"+OK")
    client.command("QUIT")
    wait_until(lambda: not any(map(runs, workers)), "the workers to end")
    with pytest.raises(AssertionError, match="ended with -9"):
        proxy.stop()


def test_a_reload_takes_new_settings_and_leaves_sessions_alone(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address))
    old, session = proxy.worker, logged_in(proxy)
    proxy.configuration["listeners"][0]["banner"] = "the second"
    proxy.configuration["process"]["group"] = "mail"
    change(proxy, limits={**proxy.configuration["limits"], "sessions_per_user": 7000})
    done = proxy.command("reload")
    changes = """for new sessions:
  listeners[0].banner
  limits.sessions_per_user: 5000 -> 7000
after a restart only:
  process.group: null -> mail
"""
    assert done.stdout == f"serving with the new configuration (generation 2)\n{changes}", done.stderr
    assert "the second" in greeting(proxy)
    assert session.command("STAT").startswith(b"+OK")
    assert len(proxy.workers) == 2
    proxy.file.write_text(proxy.file.read_text().replace("drain: 1s", "drain: soon"))
    os.kill(proxy.pid, signal.SIGHUP)
    wait_until(lambda: "timeouts.drain" in proxy.log(), "the complaint")
    done = proxy.command("reload", "--socket", str(proxy.configuration["control"]["socket"]))
    assert (done.returncode, "timeouts.drain: 'soon' is not a duration" in done.stderr) == (66, True), done.stderr
    metrics = proxy.metrics()
    assert metrics["popproxy_config_last_reload_successful"] == 0
    assert "the second" in greeting(proxy)
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: not runs(old), "the old worker to end")
    wait_until(
        lambda: {record["event.outcome"] for record in proxy.audit("config_reload")} == {"success", "failure"},
        "the records of both reloads",
    )


def test_a_reload_says_that_nothing_has_changed_and_reads_the_other_files_all_the_same(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address))
    assert "nothing has changed in it; certificates" in proxy.command("reload").stdout
    change(
        proxy, timeouts={"drain": "2s", "idle": "5m"}, audit={**proxy.configuration["audit"], "checkpoint_records": 9}
    )
    told = json.loads(proxy.command("reload", "--json").stdout)
    assert told["changes"] == [
        {"key": "timeouts.idle", "effect": "new_sessions", "from": "10m", "to": "5m"},
        {"key": "timeouts.drain", "effect": "now", "from": "1s", "to": "2s"},
        {"key": "audit.checkpoint_records", "effect": "new_sessions", "from": 1000, "to": 9},
    ]
    (warning,) = told["warnings"]
    assert "timeouts.idle" in warning
    proxy.file.write_text(proxy.file.read_text().replace("drain: 2s", "drain: 3s"))
    os.kill(proxy.pid, signal.SIGHUP)
    wait_until(lambda: "timeouts.drain: 2s -> 3s" in proxy.log(), "the change in the log")
    said = [json.loads(line) for line in proxy.log().splitlines() if "serving with the new" in line]
    assert [(one.get("changes"), one.get("now")) for one in said] == [
        ("none", None), (None, ["timeouts.drain: 1s -> 2s"]), (None, ["timeouts.drain: 2s -> 3s"]),
    ]  # fmt: skip
    assert "timeouts.idle" in next(line for line in proxy.log().splitlines() if '"the configuration"' in line)


def test_a_reload_that_fails_leaves_operators_where_they_are(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    proxy = start_proxy(settings(backend.address))
    control = proxy.configuration["control"]
    socket_before = control["socket"]
    for wrong in ({"socket": "/nowhere/at-all/control"}, {"group": "no-such-group"}):
        change(proxy, control={**control, **wrong})
        done = proxy.command("reload", "--socket", socket_before)
        assert (done.returncode, "no control socket" in done.stderr) == (66, True), done.stderr
        assert proxy.command("who", "--socket", socket_before).returncode == 0
    change(proxy, control=control)
    done = proxy.command("reload")
    assert done.returncode == 0, done.stderr
    change(proxy, control={**control, "socket": f"{socket_before}2"})
    assert proxy.command("reload", "--socket", socket_before).returncode == 0
    assert proxy.command("who").returncode == 0
    assert not Path(socket_before).exists()
    Path(f"{socket_before}2").unlink()
    os.kill(proxy.pid, signal.SIGHUP)
    wait_until(lambda: proxy.command("who").returncode == 0, "the socket to be back", 30)


def test_a_drain_lets_sessions_finish(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    proxy = start_proxy(settings(backend.address, timeouts={"drain": "60s"}, workers=2))
    session = logged_in(proxy)
    done = proxy.command("drain")
    assert done.stdout.endswith("60 s at most\n"), done.stderr
    wait_until(lambda: refused(proxy.port()), "the port to be closed")
    assert proxy.get("/readyz") == (503, "draining\n")
    refusal = proxy.command("reload")
    assert (refusal.returncode, "popproxy is draining" in refusal.stderr) == (66, True), refusal.stderr
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: not runs(proxy.pid), "the end")


def greeting(proxy: Proxy) -> str:
    with socket.create_connection(("127.0.0.1", proxy.port()), timeout=60) as client:
        return client.recv(200).decode()


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def state_of(pid: int) -> str:
    """As ps has it; "" if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def runs(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


# ---- limits of all workers together ----


class OneAtATime:
    """Lets only one of two workers take new clients: the other one stands still meanwhile."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    @contextlib.contextmanager
    def only(self, pid: int) -> Iterator[None]:
        """The one with this process id."""
        others = [other for other in self._proxy.workers if other != pid]
        for other in others:
            os.kill(other, signal.SIGSTOP)
            wait_until(lambda other=other: state_of(other) == "T", "it to stand still")  # type: ignore[misc]
        try:
            yield
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)


def test_workers_have_their_shares_of_all_connections(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    proxy = start_proxy(settings(backend.address, workers=2, limits={"connections": 5}))
    turn, sessions = OneAtATime(proxy), list[LineClient]()
    for pid in proxy.workers:
        with turn.only(pid):
            while greeting(proxy).startswith("+OK"):  # somebody who has not logged in yet would make room
                sessions.append(logged_in(proxy, f"user{len(sessions)}"))
    assert len(sessions) == 5
    for session in sessions:
        assert session.command("QUIT").startswith(b"+OK")
    assert proxy.metrics()['popproxy_connections_refused_total{listener="pop3",reason="limit"}'] == 2


def test_a_server_gets_no_more_sessions_than_it_can_take_from_all_workers_and_configurations_together(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    pool = {"balance": {"sessions": 2, "queue_wait": "60s"}}
    proxy = start_proxy(settings(backend.address, workers=2, pool=pool))
    turn, workers = OneAtATime(proxy), proxy.workers
    inside: dict[int, LineClient] = {}
    for pid in workers:
        with turn.only(pid):
            inside[pid] = logged_in(proxy, f"user{pid}")

    def waiting(pid: int | None) -> LineClient:
        """Somebody who waits in this worker."""
        with contextlib.nullcontext() if pid is None else turn.only(pid):
            client = LineClient(proxy.port(), seconds=60)
            assert client.line().startswith(b"+OK")
        assert client.command("USER waiting").startswith(b"+OK")
        client.send(f"PASS {canary()}\r\n".encode())
        wait_until(lambda: proxy.metrics()['popproxy_queue_waiting{pool="main"}'] == 1, "somebody to wait")
        assert open_at(backend) == 2
        return client

    first, second = workers
    client = waiting(first)
    assert inside.pop(second).command("QUIT").startswith(b"+OK")
    assert client.line().startswith(b"+OK"), "the place that another worker has given back"
    again = waiting(second)
    assert proxy.command("reload").returncode == 0
    assert inside.pop(first).command("QUIT").startswith(b"+OK")
    assert again.line().startswith(b"+OK")
    wait_until(lambda: proxy.metrics()['popproxy_queue_waiting{pool="main"}'] == 0, "nobody to wait")
    last = waiting(None)  # with the new configuration, while both places are taken with the earlier one
    os.kill(first, signal.SIGKILL)
    assert last.line().startswith(b"+OK"), "the place of a worker that has died"
    assert client.rest() == b""
    for session in (again, last):
        assert session.command("QUIT").startswith(b"+OK")


def open_at(backend: ScriptedBackend) -> int:
    return sum(not session.ended for session in backend.sessions)
