"""What a source of tasks is, and the seeded endless order in which they are claimed.

A claim carries a position in an endless sequence, and `order` turns it into a pass and a place in the source, so that a
run can resume anywhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, overload

import numpy as np

from cluster.errors import ConfigError
from cluster.plugins import Plugin
from cluster.types import Task
from cluster.types.wire import checked_task


class TaskSource(Plugin):
    """Tasks to train on, and tasks never trained on.

    Both sequences may make a task only when it is asked for; a task that cannot be made raises DataError then.
    """

    def train(self) -> Sequence[Task]:
        raise NotImplementedError

    def evaluation(self) -> Sequence[Task]:
        return ()

    def head(self) -> Iterator[Task]:
        """The tasks that are looked at before a run starts. Raises DataError for one that cannot be made."""
        yield from islice(self.train(), 1)


def checked(task: Any) -> Task:
    """Return a copy of the task that can be stored. Raises DataError."""
    return checked_task(task)


class Lazy(Sequence[Task]):
    """`make(i)` for each of `indices`, made when asked for."""

    def __init__(self, make: Callable[[int], Task], indices: Sequence[int]) -> None:
        self._make, self._indices = make, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> Lazy: ...
    def __getitem__(self, place: int | slice) -> Task | Lazy:
        if isinstance(place, slice):
            return Lazy(self._make, self._indices[place])
        return self._make(self._indices[place])


def without(tasks: Sequence[Task], places: Sequence[int]) -> Sequence[Task]:
    """The tasks but those at `places`, in their order."""
    if not places:
        return tasks
    kept = np.delete(np.arange(len(tasks)), np.array(places)).tolist()
    return Lazy(tasks.__getitem__, kept)


def order(seed: int, size: int, shuffle: bool) -> Callable[[int], tuple[int, int]]:
    """Position in the endless sequence → (pass, index of the task).

    Every pass visits every task once, with `shuffle` in an order of its own that depends on seed and pass only. A
    resumed run may ask for any position; the permutations of the last passes asked for are kept.
    """
    if size < 1:
        raise ConfigError("tasks: the source gives no training task.")

    @lru_cache(maxsize=2)
    def permutation(number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).permutation(size)

    def place(position: int) -> tuple[int, int]:
        number, index = divmod(position, size)
        return number, int(permutation(number)[index]) if shuffle else index

    return place
