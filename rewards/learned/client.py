"""A reward model as a reward worker sees it: the version published last, and a way to ask for labels."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rewards.learned.labels import Label, Labels, pair
from rewards.learned.publishing import Announcement, Board, read

if TYPE_CHECKING:
    from rewards.learned.network import Model

EVERY = 10
"""Every n-th caption that passes can be compared with another (ONI's code)."""
KEPT = 1000
"""Captions that a new one may be compared with."""
MAX_KNOWN = 100_000
"""Predictions that are kept; captions repeat."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    values: np.ndarray
    """[N] r̂, NaN where the model does not know."""
    version: str
    """Version of the model; `…0` knows nothing, for nothing is published yet."""


class RewardModelClient:
    """Belongs to one event loop; nothing here waits for a judge or a trainer."""

    def __init__(self, name: str, use: str, build: Callable[[], Model], *, labels: Labels, board: Board) -> None:
        """`build()` makes the model that published states are loaded into."""
        self.name = name
        self._build, self._labels, self._board = build, labels, board
        self._none = f"{use}.0"
        self._announced: Announcement | None = None
        self._model: Model | None = None
        self._known: dict[str, float] = {}
        self._compares = build().compares
        self._random, self._num_seen, self._held = random.Random(name), 0, deque[str](maxlen=KEPT)
        self._counts: Counter[str] = Counter()
        # One thread: it owns the model, and one core is what inference gets.
        self._thread = ThreadPoolExecutor(1, f"reward-model-{name}", _one_core)

    @property
    def version(self) -> str:
        return self._announced.version if self._announced else self._none

    @property
    def published(self) -> bool:
        """Whether there is a version at all."""
        return self._announced is not None

    async def refresh(self) -> None:
        """Load what was published since. Raises InfrastructureError if it cannot be read, BufferUnavailable."""
        await self._work(self._refresh)

    async def predict(self, captions: Sequence[str]) -> Prediction:
        """r̂ of these captions, all by one version."""
        return await self._work(lambda: self._predict(captions))

    async def ask(self, captions: Sequence[str]) -> None:
        """Ask for labels of these captions as they occurred, or of pairs of some; does not wait for one."""
        await asyncio.to_thread(self._ask, captions)

    async def submit(self, keys: Sequence[str], *, group: Sequence[str] = ()) -> None:
        """Ask for labels of exactly these keys; `group` are texts that a model may learn from without any."""
        await asyncio.to_thread(self._submit, keys, group)

    async def tell(self, labels: Mapping[str, float], *, version: str) -> None:
        """Add labels that no judge is asked for, such as outcomes; of one version the first label of a key stays."""
        known = {key: Label(value, judge="told", version=version) for key, value in labels.items()}
        await asyncio.to_thread(self._labels.add, known)

    def snapshot(self) -> dict[str, float]:
        """Metrics by name."""
        seen = self._counts["seen"]
        known = self._counts["known"] / seen if seen else float("nan")
        return {f"reward_model/{self.name}_known_frac": known, f"reward_model/{self.name}_num_seen": float(seen)}

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _refresh(self) -> None:
        current = self._board.current(self.name)
        if current is None or (self._announced and current.version == self._announced.version):
            return
        model = self._build()
        model.load(read(current))
        self._model, self._announced, self._known = model, current, {}

    def _predict(self, captions: Sequence[str]) -> Prediction:
        distinct = list(dict.fromkeys(captions))
        if self._model is not None:
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
            new = [c for c in distinct if c not in self._known]
            self._known |= zip(new, self._model.predict(new).tolist(), strict=True)
        values = np.array([self._known.get(c, np.nan) for c in captions], np.float64)
        self._counts["seen"] += len(values)
        self._counts["known"] += int(np.isfinite(values).sum())
        return Prediction(values, self.version)

    def _ask(self, captions: Sequence[str]) -> None:
        if self._compares:
            self._labels.submit(self._pairs(captions))
            return
        # Looked up as they occurred, for the coverage; the table itself knows what it needs no second label for.
        self._labels.look_up(captions)
        self._labels.submit(list(dict.fromkeys(captions)))

    def _submit(self, keys: Sequence[str], group: Sequence[str]) -> None:
        if group:
            self._labels.show(group)
        self._labels.look_up(keys)
        self._labels.submit(keys)

    def _pairs(self, captions: Sequence[str]) -> list[str]:
        found = []
        for caption in captions:
            self._num_seen += 1
            if self._num_seen % EVERY or not caption:
                continue
            others = [c for c in self._held if c != caption]
            if others:
                found.append(pair(caption, self._random.choice(others)))
            self._held.append(caption)
        return found


def _one_core() -> None:
    import torch  # late: a reward worker without reward models does not wait for it

    torch.set_num_threads(1)
