"""The labeller: it asks a judge for the labels that are wanted."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Protocol

from cluster.types import Message
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call
from rewards.learned.caption_labels import MAX_TOKENS, TEMPERATURE
from rewards.learned.labels import Against, Label, Labels

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often a waiting labeller looks whether it should stop."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""After a judge that was away."""

Answer = float | Against | None
"""A label, or what is worse than the key; None: it could not be read."""


class Judge(Protocol):
    """A judge that labels."""

    async def __call__(self, keys: Sequence[str], /) -> Sequence[Answer] | None:
        """An answer per key. None for all of it: the judge is away, ask again later. What it raises means the same."""
        ...


class Labeller:
    """Asks a judge for what waits in the backlog, several requests at once."""

    def __init__(
        self,
        labels: Labels,
        judge: Judge,
        *,
        name: str,
        version: str = "0",
        batch_size: int = 100,
        max_in_flight: int = 4,
        max_attempts: int = 2,
        timeout_s: float = 100.0,
    ) -> None:
        """`name` and `version` sign the labels. `timeout_s` is of one request, and below the table's time in flight:
        an answer that comes later is asked for twice. An unreadable key is given up after `max_attempts`."""
        self._labels, self._judge, self._name, self._version = labels, judge, name, version
        self._batch_size, self._max_in_flight = batch_size, max_in_flight
        self._max_attempts, self._timeout_s = max_attempts, timeout_s
        self._active: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._pause_s = 0.0
        self.num_asked = self.num_unreadable = self.num_outages = 0

    async def run(self) -> None:
        """Label until `stop`. Raises what the table raises; what the judge raises is an outage."""
        try:
            while not self._stopping.is_set():
                await self._take()
                for task in [t for t in self._active if t.done()]:
                    self._active.discard(task)
                    task.result()
            await asyncio.gather(*self._active)
        finally:
            for task in self._active:
                task.cancel()

    async def stop(self) -> None:
        """Finish what is in flight, then let `run` return."""
        self._stopping.set()

    def snapshot(self) -> dict[str, float]:
        """Counts by name, without the area."""
        return {
            "num_asked": float(self.num_asked),
            "num_unreadable": float(self.num_unreadable),
            "num_outages": float(self.num_outages),
        }

    async def _take(self) -> None:
        # After an outage one request at a time finds out whether the judge is back.
        if len(self._active) >= (1 if self._pause_s else self._max_in_flight):
            await asyncio.wait(self._active, return_when=asyncio.FIRST_COMPLETED, timeout=POLL_S)
        else:
            if self._pause_s and await self._stopped_within(self._pause_s):
                return
            taken = await asyncio.to_thread(self._labels.take, self._batch_size, POLL_S)
            if taken:
                self._active.add(asyncio.create_task(self._ask(taken)))

    async def _stopped_within(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _ask(self, taken: dict[str, int]) -> None:
        keys, note = list(taken), "it said so"
        self.num_asked += len(keys)
        values = None
        try:
            values = await asyncio.wait_for(self._judge(keys), self._timeout_s)
            if values is not None and len(values) != len(keys):
                values, note = None, f"it gave {len(values)} labels for {len(keys)} keys"
        except TimeoutError:
            note = f"no answer within {self._timeout_s:g} s"
        except Exception as error:  # foreign code: the failure is counted, named, and never a label
            note = f"{type(error).__name__}: {error}"
        if values is None:
            await self._outage(keys, note)
            return
        self._pause_s = 0.0
        labels = {key: self._label(answer, taken[key]) for key, answer in zip(keys, values, strict=True)}
        done = {key: label for key, label in labels.items() if label.known}
        unread = [key for key in keys if key not in done]
        self.num_unreadable += len(unread)
        given_up = [key for key in unread if taken[key] >= self._max_attempts]
        done |= {key: labels[key] for key in given_up}
        await asyncio.to_thread(self._labels.add, done)
        await asyncio.to_thread(self._labels.put_back, [k for k in unread if k not in done], counted=True)

    def _label(self, answer: Answer, attempt: int) -> Label:
        if isinstance(answer, Against):
            return Label(1.0, self._name, attempt, self._version, answer.text)
        value = math.nan if answer is None or not math.isfinite(answer) else float(answer)
        return Label(value, self._name, attempt, self._version)

    async def _outage(self, keys: Sequence[str], note: str) -> None:
        self.num_outages += 1
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        if self.num_outages.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
            log.warning("judge '%s' of labels is away: %s (%d times so far)", self._name, note, self.num_outages)
        await asyncio.to_thread(self._labels.put_back, keys, counted=False)


class Asking:
    """Implements `rewards.learned.caption_labels.Complete`. Belongs to one event loop."""

    def __init__(self, pool: JudgePool, max_in_flight: int) -> None:
        self._pool, self._free = pool, asyncio.Semaphore(max_in_flight)

    async def __call__(
        self, messages: tuple[Message, ...], /, *, max_tokens: int = MAX_TOKENS, temperature: float = TEMPERATURE
    ) -> str | None:
        """The answer, cut short or not: without its label it cannot be read. Raises JudgeError."""
        async with self._free:
            completion = await self._pool.complete(Call(messages, max_tokens, temperature))
        return completion.text
