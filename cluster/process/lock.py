"""The run lock: one driver per run directory, held as long as its process lives."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from cluster.errors import ConfigError

LOCK = "owner.lock"


def acquire_run_lock(directory: Path) -> TextIO:
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
