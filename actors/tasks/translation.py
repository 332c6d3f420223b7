"""A language of ten words: `473>` → `ehd`, digits into the letters a to j. What `tiny:translator` half knows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from pydantic import Field, PositiveInt

from actors.tasks.base import TaskSource
from cluster.types import Task

SPLIT_SEED = 0
EVALUATION = 200
LETTERS = "abcdefghij"


@cache
def sources() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All texts of three digits, as (training, held out): 800 and 200."""
    order = [f"{i:03}" for i in np.random.default_rng(SPLIT_SEED).permutation(1000)]
    return tuple(order[EVALUATION:]), tuple(order[:EVALUATION])


def translated(source: str) -> str:
    return "".join(LETTERS[int(digit)] for digit in source)


class Translation(TaskSource):
    """`473>` → `ehd`. The reference is for evaluation accuracy; a self-judging policy never sees it."""

    num_evaluation: PositiveInt = Field(EVALUATION, le=EVALUATION)
    """Held-out sentences that are used, of those that the source sets apart."""

    def train(self) -> Sequence[Task]:
        return [self._task(s) for s in sources()[0]]

    def evaluation(self) -> Sequence[Task]:
        return [self._task(s) for s in sources()[1][: self.num_evaluation]]

    @staticmethod
    def _task(source: str) -> Task:
        return Task.of(f"translation/{source}", f"{source}>", translated(source), source="translation")
