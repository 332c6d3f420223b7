"""Replicas of one service that come and go: which is asked next, and another try where one is gone or full."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from cluster.errors import one_line

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")


class ReplicaPool(Generic[R]):
    """Replicas by name. Belongs to one event loop. A name stands for one life: a replica that is gone is not asked
    again."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Mapping[str, R]]] | None = None,
        *,
        look_s: float = 0.5,
        usable: Callable[[R], bool] = lambda replica: True,
    ) -> None:
        """`look` finds the replicas, at most every `look_s` seconds; without it `add`, `remove` and `set` say so.
        `usable`: whether a replica may be asked now."""
        self._look, self._look_s, self._usable = look, look_s, usable
        self._replicas: dict[str, R] = {}
        self._in_flight: Counter[str] = Counter()
        self._gone: set[str] = set()
        self._looked, self._looking = -look_s, asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def replicas(self) -> Mapping[str, R]:
        """Those that are there and not gone."""
        return {name: replica for name, replica in self._replicas.items() if name not in self._gone}

    def in_flight(self, name: str) -> int:
        return self._in_flight[name]

    def set(self, replicas: Mapping[str, R]) -> None:
        """Let the pool consist of these and no others."""
        self._replicas = dict(replicas)
        self.notify()

    def add(self, name: str, replica: R) -> None:
        self.set({**self._replicas, name: replica})

    def remove(self, name: str) -> None:
        self.set({other: replica for other, replica in self._replicas.items() if other != name})

    def notify(self) -> None:
        """Wake those that wait: a replica came, went, became usable or less busy."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float | None) -> None:
        """Wait for `notify`, at most so long."""
        event = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()

    def least_busy(self, tried: Collection[str] = ()) -> tuple[str, R] | None:
        """Return the usable replica with the least in flight, one that is not in `tried` if there is any."""
        ready = [(name, replica) for name, replica in self.replicas.items() if self._usable(replica)]
        return min(ready, key=lambda item: (item[0] in tried, self._in_flight[item[0]]), default=None)

    async def take(self, tried: Collection[str] = (), timeout_s: float | None = None) -> tuple[str, R]:
        """Return `least_busy`, and wait while there is none. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                await self._refresh()
                if (found := self.least_busy(tried)) is not None:
                    return found
                await self.changed(self._look_s if self._look else None)

    @contextmanager
    def busy(self, name: str, load: int = 1) -> Iterator[None]:
        """Count `load` as in flight at a replica."""
        self._in_flight[name] += load
        try:
            yield
        finally:
            self._in_flight[name] -= load
            self.notify()

    async def ask(
        self,
        call: Callable[[str, R], Awaitable[T]],
        *,
        gone: tuple[type[BaseException], ...] = (),
        full: tuple[type[BaseException], ...] = (),
        load: int = 1,
        timeout_s: float | None = None,
    ) -> T:
        """Return what the least busy replica answers; another one is asked where it is `gone`, or `full` for now.

        Raises TimeoutError where no replica is there for `timeout_s`.
        """
        tried: set[str] = set()
        while True:
            name, replica = await self.take(tried, timeout_s)
            try:
                with self.busy(name, load):
                    return await call(name, replica)
            except gone as error:
                log.warning("%s is gone, another one is asked: %s", name, one_line(error))
                self._gone.add(name)
            except full:
                tried.add(name)
                if tried >= self.replicas.keys():
                    await asyncio.sleep(self._look_s)
                    tried.clear()

    async def _refresh(self) -> None:
        if self._look is None:
            return
        async with self._looking:
            if time.monotonic() - self._looked >= self._look_s:
                self._replicas = dict(await self._look())
                self._looked = time.monotonic()
