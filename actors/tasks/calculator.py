"""Sums of three two-digit numbers, for a policy with a calculator that adds two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from pydantic import Field, PositiveInt

from actors.tasks.base import TaskSource
from cluster.types import Task

SPLIT_SEED = 0
WARM_START, TRAIN, EVALUATION = 8000, 20_000, 1000

Sum = tuple[int, int, int]


@cache
def sums_of_three() -> tuple[tuple[Sum, ...], tuple[Sum, ...], tuple[Sum, ...]]:
    """8,000 sums for the warm start, 20,000 to train on, 1,000 held out: of 120,000 that differ in more than order."""
    rng = np.random.default_rng(SPLIT_SEED)
    chosen: set[tuple[int, ...]] = set()
    drawn: list[Sum] = []
    while len(drawn) < WARM_START + TRAIN + EVALUATION:
        a, b, c = rng.integers(10, 100, 3).tolist()
        if tuple(sorted((a, b, c))) not in chosen:
            chosen.add(tuple(sorted((a, b, c))))
            drawn.append((a, b, c))
    return tuple(drawn[:WARM_START]), tuple(drawn[WARM_START:-EVALUATION]), tuple(drawn[-EVALUATION:])


class SumsOfThree(TaskSource):
    """`12+34+56=` → `102`: what the model `tiny:calculator` works out when it uses the environment `calculator`."""

    num_evaluation: PositiveInt = Field(EVALUATION, le=EVALUATION)
    """Evaluation tasks that are used, of those that the source sets apart."""

    def train(self) -> Sequence[Task]:
        return [self._task(s) for s in sums_of_three()[1]]

    def evaluation(self) -> Sequence[Task]:
        return [self._task(s) for s in sums_of_three()[2][: self.num_evaluation]]

    @staticmethod
    def _task(numbers: Sum) -> Task:
        text = "+".join(map(str, numbers))
        return Task.of(f"calculator/{text}", f"{text}=", str(sum(numbers)), source="calculator")
