"""How a reward model gets from who trains it to who scores with it: a file, and an announcement in Redis."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from cluster.buffer.connection import Connection
from cluster.errors import InfrastructureError
from cluster.types import decode, encode

State = dict[str, np.ndarray]
"""A reward model as arrays."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Which version of a reward model is to be used, and where it lies."""

    name: str
    version: str
    path: str
    """Path of a file that every reward worker can read: in the run's directory."""
    num_labels: int
    agreement: float
    """With held-out labels; NaN of a model that has nothing to learn."""


def is_held_out(key: str, frac: float) -> bool:
    """Whether a label serves for comparing: decided by its key's hash, the same in every process and for ever."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) < frac * 2**32


def passes(agreement: float, current: float, least: float) -> bool:
    """The gate: good enough, and no worse than what is published (NaN: nothing is). Unknown agreement does not pass."""
    return agreement >= least and not agreement < current


class Board(Protocol):
    """Where the announcements are. Thread-safe."""

    def announce(self, announcement: Announcement) -> None: ...

    def current(self, name: str) -> Announcement | None: ...


class MemoryBoard:
    """For one process."""

    def __init__(self) -> None:
        self._last: dict[str, Announcement] = {}

    def announce(self, announcement: Announcement) -> None:
        self._last[announcement.name] = announcement

    def current(self, name: str) -> Announcement | None:
        return self._last.get(name)


class RedisBoard:
    """One small key per model, `kanabo:{RUN}:reward_model:NAME`. Raises BufferUnavailable."""

    def __init__(self, url: str, run: str) -> None:
        self._args = (url, run)
        self._connection = Connection(url, run)

    def __reduce__(self) -> tuple[type[RedisBoard], tuple[str, str]]:
        return RedisBoard, self._args

    def close(self) -> None:
        self._connection.close()

    def announce(self, announcement: Announcement) -> None:
        key, data = self._key(announcement.name), encode(announcement)
        self._connection.patiently(lambda: self._connection.redis.set(key, data))

    def current(self, name: str) -> Announcement | None:
        data: Any = self._connection.patiently(lambda: self._connection.redis.get(self._key(name)))
        return decode(data, Announcement) if data else None

    def _key(self, name: str) -> str:
        return f"{self._connection.prefix}distilled:{name}"  # version 0.1's key: a resumed run finds its model


def write(path: Path, value: Any) -> None:
    """Whole or not at all, and on the disk when this returns."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as file:
        file.write(encode(value))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(announcement: Announcement) -> State:
    """The announced model. Raises InfrastructureError if this machine cannot read it."""
    try:
        return decode(Path(announcement.path).read_bytes(), State)
    except (OSError, msgspec.DecodeError) as error:
        raise InfrastructureError(
            f"reward model '{announcement.name}' version {announcement.version} cannot be read: {error}. "
            "Every reward worker must see the run's directory; on several nodes run.dir lies on a shared disk."
        ) from error
