"""The watchdog asks every actor, again and again, what it waits for, and kills actors that do not answer.

A process that is stopped or hangs looks alive to Ray; only that it does not answer gives it away. Killing it is all
that is done here: its death is then seen, counted and made good where every other death is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import Any

import ray

from cluster.buffer.server import Store

log = logging.getLogger(__name__)

PING_S = 5.0
STORE_SILENT_S = 15.0
"""Shorter than the time for which a client waits for Redis to come back."""


class Watchdog:
    """Watches actors with a method `waiting() -> str`, and the run's own redis-server."""

    def __init__(self, heartbeat_timeout_s: float, store: Store | None) -> None:
        self._timeout_s, self._store = heartbeat_timeout_s, store
        self._answered: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}

    def watch(self, name: str, actor: Any) -> None:
        """From now on, until it is dead."""
        self.forget(name)
        self._answered[name], self._said[name] = time.monotonic(), "has just started"
        self._watching[name] = asyncio.create_task(self._watch(name, actor))

    def expect(self, name: str) -> None:
        """It is being started; how long that takes is not judged here."""
        self._said[name] = "is starting"

    def forget(self, name: str) -> None:
        """It has ended."""
        if name in self._watching:
            self._watching.pop(name).cancel()
            del self._answered[name]
        self._said.pop(name, None)

    def standing(self) -> list[dict[str, Any]]:
        """Each actor's name, what it says it does, and seconds since it last answered (None before it is up)."""
        now, answered = time.monotonic(), dict(self._answered)
        ago = {name: now - at for name, at in answered.items()}
        return [{"name": n, "says": said, "answered_s": ago.get(n)} for n, said in sorted(dict(self._said).items())]

    def report(self) -> str:
        """What each actor waits for, a line each."""
        now = time.monotonic()
        silent = {n: now - t for n, t in self._answered.items() if now - t > 2 * PING_S}
        return "".join(
            f"\n  {name} has not answered for {silent[name]:.0f} s; its last words: {said}"
            if name in silent
            else f"\n  {name} {said}"
            for name, said in sorted(self._said.items())
        )

    def close(self) -> None:
        for name in list(self._said):
            self.forget(name)

    async def watch_store(self) -> None:
        """End a redis-server that is there and does not answer; whoever looks after it starts it anew."""
        if self._store is None:
            return
        answered = time.monotonic()
        while True:
            await asyncio.sleep(PING_S / 2)
            pid = self._store.pid
            if not self._store.alive() or await asyncio.to_thread(self._store.answers):
                answered = time.monotonic()
            elif time.monotonic() - answered > STORE_SILENT_S and self._store.alive() and pid == self._store.pid:
                log.warning("redis-server %d has not answered for %.0f s: killed", pid, STORE_SILENT_S)
                os.kill(pid, signal.SIGKILL)
                answered = time.monotonic()

    async def _watch(self, name: str, actor: Any) -> None:
        while True:
            asked = asyncio.ensure_future(_ask(actor))
            try:
                while not (await asyncio.wait({asked}, timeout=PING_S))[0]:
                    if time.monotonic() - self._answered[name] > self._timeout_s:
                        log.warning(
                            "%s has not answered for run.heartbeat_timeout_s = %.0f s: killed",
                            name,
                            self._timeout_s,
                        )
                        ray.kill(actor)
                        return
            finally:
                asked.cancel()  # nobody hears it any more, unless it is done
            if asked.exception() is not None:
                return  # dead: its own task says so
            self._said[name], self._answered[name] = asked.result(), time.monotonic()
            await asyncio.sleep(PING_S)


async def _ask(actor: Any) -> str:
    return await actor.waiting.remote()
