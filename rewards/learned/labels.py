"""Labels that judges give to captions, and who asks for them (ONI, arXiv:2410.23022).

    look_up, submit ─► backlog: bounded, newest first ─► take ─► judge ─► add ─► table, news
          ▲ nobody waits      the oldest is pushed out ◄── put_back, or its time in flight has passed

A key is a caption, or a pair of captions (`pair`). It waits, is in flight, or is labelled; never two of these.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Order = Literal["newest", "oldest"]
"""Which of the waiting keys are taken first."""
BETWEEN = "\x1f"
MAX_SHOWN = 64
"""Groups of texts that a table keeps for models that learn from what has no label."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a judge says of a key, and who said it."""

    value: float
    """In [0, 1]: of a caption whether it is good news, of a pair whether the first is the better, 0.5 for neither.
    NaN: asked `attempt` times and never read. What an episode came to is any number."""
    judge: str = ""
    attempt: int = 1
    version: str = "0"
    """Version of judge and prompt. A label of an older version is used until it is replaced."""
    against: str = ""
    """What a labeller has written to be compared with the key: the label is of the two, the key first."""

    @property
    def known(self) -> bool:
        return math.isfinite(self.value)


@dataclass(frozen=True, slots=True)
class Against:
    """A labeller's answer where the key is the better one, and it wrote the worse itself."""

    text: str


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The state of a label table; of what happened, since the run began."""

    labels: int
    backlog: int
    in_flight: int
    looked_up: int
    found: int
    """Look-ups that found a known label."""
    pushed_out: int
    """Left the full backlog unasked."""
    expired: int
    """Were in flight for too long and wait again."""

    @property
    def coverage(self) -> float:
        """Labelled look-ups per look-up; NaN before the first."""
        return self.found / self.looked_up if self.looked_up else math.nan


@dataclass(frozen=True, slots=True)
class News:
    """A label as it was added; `cursor` is where to go on reading."""

    cursor: str
    key: str
    label: Label


class Labels(Protocol):
    """A label table with its backlog. Synchronous and thread-safe; only `take` and `news` wait."""

    def look_up(self, keys: Sequence[str]) -> list[Label | None]: ...

    def submit(self, keys: Sequence[str]) -> int:
        """Ask for these, the last one first. How many entered the backlog anew.

        Nothing happens to a key that is in flight or labelled under the current version; one that waits becomes the
        newest.
        """
        ...

    def take(self, limit: int, timeout_s: float) -> dict[str, int]:
        """The next keys by the table's order, the newest of them last, and which attempt this is; waits for one.

        They are now in flight.
        """
        ...

    def add(self, labels: Mapping[str, Label]) -> None:
        """Keep these and ask no more. Of one version the first label stays."""
        ...

    def put_back(self, keys: Sequence[str], *, counted: bool) -> None:
        """From in flight to where they were in the backlog; the attempt counts or does not."""
        ...

    def news(self, after: str, limit: int, timeout_s: float) -> list[News]:
        """Labels in the order in which they came, after a cursor (`"0"` is the start); waits for one."""
        ...

    def counts(self) -> LabelCounts: ...

    def show(self, texts: Sequence[str]) -> None:
        """Texts that belong together, such as a group's, whether anybody labels them or not; the newest are kept."""
        ...

    def shown(self) -> list[tuple[str, ...]]:
        """What was shown last, the newest first, at most `MAX_SHOWN`."""
        ...


def pair(first: str, second: str) -> str:
    """The key of a comparison. Raises ValueError if a caption holds the separator."""
    if BETWEEN in first + second:
        raise ValueError(f"a caption holds the unit separator U+001F and cannot be compared: {first + second!r:.120}")
    return first + BETWEEN + second


def pair_of(key: str) -> tuple[str, str]:
    first, _, second = key.partition(BETWEEN)
    return first, second


class MemoryLabels:
    """For one process. `max_backlog`, `ttl_s` and `order` as in `RedisLabels`; `clock` is in seconds."""

    def __init__(
        self,
        *,
        version: str = "0",
        max_backlog: int = 10_000,
        ttl_s: float = 120.0,
        order: Order = "newest",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version, self._max_backlog, self._ttl_s, self._clock = version, max_backlog, ttl_s, clock
        self._order = order
        self._table: dict[str, Label] = {}
        self._backlog: dict[str, int] = {}
        """Key → the number of its submission."""
        self._in_flight: dict[str, tuple[float, int]] = {}
        """Key → when its time is up, and the number of its submission."""
        self._attempts: dict[str, int] = {}
        self._news: list[News] = []
        self._shown: deque[tuple[str, ...]] = deque(maxlen=MAX_SHOWN)
        self._seq = self._looked_up = self._found = self._pushed_out = self._expired = 0
        self._changed = threading.Condition()

    def look_up(self, keys: Sequence[str]) -> list[Label | None]:
        with self._changed:
            found = [self._table.get(key) for key in keys]
            self._looked_up += len(keys)
            self._found += sum(label is not None and label.known for label in found)
            return found

    def submit(self, keys: Sequence[str]) -> int:
        with self._changed:
            self._expire()
            num_new = 0
            for key in keys:
                label = self._table.get(key)
                if key in self._in_flight or (label and label.version == self._version):
                    continue
                num_new += key not in self._backlog
                self._seq += 1
                self._backlog[key] = self._seq
            self._push_out()
            self._changed.notify_all()
            return num_new

    def take(self, limit: int, timeout_s: float) -> dict[str, int]:
        until = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._expire()
                left_s = until - time.monotonic()
                if self._backlog or left_s <= 0:
                    break
                due_s = min((due for due, _ in self._in_flight.values()), default=math.inf) - self._clock()
                self._changed.wait(max(0.0, min(left_s, due_s)))
            keys = sorted(self._backlog, key=self._backlog.__getitem__)
            keys = keys[-limit:] if self._order == "newest" else keys[:limit]
            for key in keys:
                self._in_flight[key] = (self._clock() + self._ttl_s, self._backlog.pop(key))
                self._attempts[key] = self._attempts.get(key, 0) + 1
            return {key: self._attempts[key] for key in keys}

    def add(self, labels: Mapping[str, Label]) -> None:
        with self._changed:
            for key, label in labels.items():
                known = self._table.get(key)
                if known is None or known.version != label.version:
                    self._table[key] = label
                    self._news.append(News(str(len(self._news) + 1), key, label))
                for waiting in (self._backlog, self._in_flight, self._attempts):
                    waiting.pop(key, None)
            self._changed.notify_all()

    def put_back(self, keys: Sequence[str], *, counted: bool) -> None:
        with self._changed:
            for key in keys:
                if key in self._in_flight:
                    self._backlog[key] = self._in_flight.pop(key)[1]
                    self._attempts[key] -= not counted
            self._push_out()
            self._changed.notify_all()

    def news(self, after: str, limit: int, timeout_s: float) -> list[News]:
        with self._changed:
            self._changed.wait_for(lambda: len(self._news) > int(after), timeout_s)
            return self._news[int(after) :][:limit]

    def counts(self) -> LabelCounts:
        with self._changed:
            now = len(self._table), len(self._backlog), len(self._in_flight)
            return LabelCounts(*now, self._looked_up, self._found, self._pushed_out, self._expired)

    def show(self, texts: Sequence[str]) -> None:
        with self._changed:
            self._shown.appendleft(tuple(texts))

    def shown(self) -> list[tuple[str, ...]]:
        with self._changed:
            return list(self._shown)

    def _expire(self) -> None:
        for key in [k for k, (due, _) in self._in_flight.items() if due <= self._clock()]:
            self._backlog[key] = self._in_flight.pop(key)[1]
            self._expired += 1
        self._push_out()

    def _push_out(self) -> None:
        for key in sorted(self._backlog, key=self._backlog.__getitem__)[: -self._max_backlog]:
            del self._backlog[key]
            self._attempts.pop(key, None)
            self._pushed_out += 1
