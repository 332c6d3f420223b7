"""One owner per directory, and no server left over in it: a second of either would split a run's state."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from cluster.errors import BufferUnavailable, ConfigError

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
LOCK = "owner.lock"


def own(directory: Path) -> TextIO:
    """The lock on a directory, which is made if need be; held until the file is closed or the process ends.

    Raises ConfigError naming who holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir: '{directory}' cannot be made: {error.strerror}. Give another run.dir.") from error
    file = (directory / LOCK).open("a+")
    _lock(file, directory, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def look(directory: Path) -> None:
    """Raises ConfigError if somebody owns the directory now; writes nothing."""
    if (directory / LOCK).exists():
        with (directory / LOCK).open() as file:
            _lock(file, directory, fcntl.LOCK_SH)


def _lock(file: TextIO, directory: Path, how: int) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise ConfigError(
            f"{directory} is in use by process {owner}: another run with this run.name and run.dir is going on. "
            "Wait for it, end it, or give this run another name."
        ) from error


def readable(directory: Path) -> None:
    """Give a directory and all files in it the modes that the umask leaves: libraries write weights as 0600."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


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
