"""A judge that is a rule, and captions that it labels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

GOOD = ("gold", "kill", "key", "deeper")
BAD = ("hungry", "miss", "wall", "curse")
FILLER = ("you", "see", "the", "a", "door", "and", "feel", "corridor", "dark", "here", "old", "small", "hear", "noise")


def is_good(caption: str) -> float:
    return float(any(word in caption for word in GOOD))


def captions(num: int, seed: int, *, good_frac: float = 0.5) -> list[str]:
    """Distinct captions of which that share holds a good word."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < num:
        words = [*rng.choice(FILLER, rng.integers(3, 7)), str(rng.choice(GOOD if rng.random() < good_frac else BAD))]
        rng.shuffle(words)
        found[" ".join(words)] = None
    return list(found)


class KeywordJudge:
    """Labels by keyword; of `unreadable` captions it gives none, while `away` none at all. `hold` delays answers."""

    def __init__(self, *, unreadable: Sequence[str] = ()) -> None:
        self.unreadable, self.away = set(unreadable), False
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked: list[list[str]] = []
        self.open: list[set[str]] = []
        self.most_open = 0

    async def __call__(self, keys: Sequence[str]) -> list[float | None] | None:
        assert not set(keys) & set().union(*self.open), "a caption was sent twice at once"
        self.asked.append(list(keys))
        self.open.append(set(keys))
        self.most_open = max(self.most_open, len(self.open))
        try:
            await self.hold.wait()
            return None if self.away else [None if key in self.unreadable else is_good(key) for key in keys]
        finally:
            self.open.remove(set(keys))
