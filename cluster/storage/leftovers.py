"""What lies in a run's directory when a run starts: of the kinds it should be, and whole where it must be read.

Something of the wrong kind under a name of ours is refused in one line that says what to move away. What is damaged and
can be done without is skipped with a warning.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path

from cluster.config import RunConfig, load
from cluster.errors import ConfigError
from cluster.storage import checkpoint, group_archive

FILES = (
    "id", "config.toml", "metrics.jsonl", "samples.jsonl", "alarms.jsonl", "summary.json", "error.txt", "curves.png",
    "owner.lock", "redis/password", "redis/redis.conf", "redis/redis.log", "redis/redis.pid", "redis/owner.lock",
)  # fmt: skip
FOLDERS = ("dataset", "redis", "checkpoints", "groups", "judges", "policies", "reward_models", "replay")
ALSO_WRITTEN = ("offline.toml", "alarm.md", "alarm.png", "mlflow", "tensorboard", "trackio", "wandb")
"""Other names that a run writes to."""
MARKS = {"id": re.compile(r".+-[0-9a-f]{6}\s*", re.DOTALL), "owner.lock": re.compile(r"\d*\s*")}
"""A directory with one of these files, of such contents, is a run's: the lock is there before anything else."""
MUST_SAY = ("id", "config.toml", "redis/password")
"""They are written once and read at every later start: empty ones are damaged."""
OFFLINE = "offline.toml"
"""The recipe of a run without rollouts (`kanabo sft`, `kanabo dpo`), in its run directory."""
SHARED_MEMORY = 32 * 2**20
"""What an engine's processes need of /dev/shm besides the published weights."""
DISK = 200 * 2**20
DESCRIPTORS = 1024


def look(directory: Path) -> list[str]:
    """Warnings of what will be skipped. Raises ConfigError for what stands in the way."""
    before = directory / "distilled"
    if before.is_dir() and not (directory / "reward_models").exists():
        before.rename(directory / "reward_models")  # what a run of version 0.1 wrote
    for names, kind in ((FILES, "file"), (FOLDERS, "directory")):
        for name in names:
            _of_kind(directory / name, kind)
    for name in MUST_SAY:
        _says_something(directory / name)
    return [*_checkpoints(directory / "checkpoints"), *_archive(directory / "groups")]


def refuse_foreign(directory: Path) -> None:
    """Raises ConfigError for a directory that is no run's and holds something under a name that a run writes to."""
    if not directory.is_dir() or any(_is_mark(directory / name, form) for name, form in MARKS.items()):
        return
    if (directory / "metrics.jsonl").is_file() and _is_recipe(directory / "config.toml"):
        return
    theirs = [name for name in (*FILES, *FOLDERS, *ALSO_WRITTEN) if os.path.lexists(directory / name)]
    if theirs:
        raise ConfigError(
            f"run.dir, run.name: '{directory}' is not the directory of a run, and a run would overwrite what it holds: "
            f"{', '.join(theirs)}. Choose another run.name or run.dir, or move that away."
        )


def _is_mark(path: Path, form: re.Pattern[str]) -> bool:
    try:
        return path.is_file() and form.fullmatch(path.read_text("utf-8")[:1000]) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _is_recipe(path: Path) -> bool:
    try:
        load(path)
    except (ConfigError, OSError):
        return False
    return True


def _of_kind(path: Path, kind: str) -> None:
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"'{path}' is a link to something that is not there. Remove the link.")
    if not path.exists():
        return
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise ConfigError(f"'{path}' is no {kind}, and the run keeps a {kind} of that name. Move it away.")
    wanted = os.R_OK | os.W_OK | (os.X_OK if kind == "directory" else 0)
    if not os.access(path, wanted):
        raise ConfigError(f"'{path}' cannot be read and written by this user. Set its permissions, or move it away.")


def _says_something(path: Path) -> None:
    if not path.exists():
        return
    try:
        text = path.read_text("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or "\0" in text:
        raise ConfigError(f"'{path}' is damaged: it holds no text. Put back a copy of it, or choose another run.name.")


def _checkpoints(directory: Path) -> list[str]:
    damaged = checkpoint.damaged(directory)
    if damaged and not checkpoint.usable(directory):
        path, why = next(iter(damaged.items()))
        raise ConfigError(
            f"'{path}' is damaged ({why}), and there is no other checkpoint to resume from. Put back a copy of it, "
            "or move it away: the run then starts from the first step."
        )
    return [f"checkpoint '{path}' is damaged ({why}) and skipped. Remove it." for path, why in damaged.items()]


def _archive(directory: Path) -> list[str]:
    return [
        f"archive file '{path}' is damaged and skipped. Remove it."
        for path in group_archive.files(directory)
        if group_archive.try_index(path) is None
    ]


def sizes(settings: RunConfig, directory: Path, weights_bytes: int) -> list[str]:
    """Warnings of what may not suffice. Raises ConfigError for what a run cannot start with.

    `weights_bytes` are those of one published version, 0 where they are not known.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and settings.engine.use == "vllm":
        need, free = SHARED_MEMORY + 3 * weights_bytes, shutil.disk_usage(memory).free
        if free < need:
            raise ConfigError(
                f"/dev/shm has {free / 2**20:.0f} MB free, and the run needs {need / 2**20:.0f} MB there for its "
                "engines and three versions of the weights. Docker: --shm-size=8g. Kubernetes: an emptyDir of "
                "medium Memory. Else: mount -o remount,size=8g /dev/shm."
            )
    there = next(path for path in (directory, *directory.parents) if path.exists())
    need, free = DISK + 2 * weights_bytes, shutil.disk_usage(there).free
    warnings = []
    if free < need:
        raise ConfigError(
            f"run.dir: '{there}' has {free / 2**20:.0f} MB free, and the run needs {need / 2**20:.0f} MB for its "
            "buffer and a checkpoint. Free space there, or give another run.dir."
        )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        warnings.append(f"this process may open {hard} files, and a run needs {DESCRIPTORS}: raise it (ulimit -n).")
    return warnings
