"""Sums of two two-digit numbers: the tasks of the quickstart and of the models `tiny:addition`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from pydantic import Field, PositiveInt

from actors.tasks.base import TaskSource
from cluster.types import Message, Task

ADDITION_SPLIT_SEED = 0
ADDITION_EVALUATION = 1000
ADDITION_WARM_START = 2000

Problem = tuple[int, int]


@cache
def addition_problems() -> tuple[tuple[Problem, ...], tuple[Problem, ...], tuple[Problem, ...]]:
    """All sums of two two-digit numbers as (warm start, training, held out), about 2,000, 5,100 and 1,000 of 8,100.

    The split is one for all runs, so a cached model never saw what a run holds out. `47+38` and `38+47` are always in
    the same set: none is solved by swapping operands.
    """
    unordered = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    warm: list[Problem] = []
    train: list[Problem] = []
    evaluation: list[Problem] = []
    for i in np.random.default_rng(ADDITION_SPLIT_SEED).permutation(len(unordered)):
        a, b = unordered[i]
        if len(evaluation) < ADDITION_EVALUATION:
            chosen = evaluation
        elif len(warm) < ADDITION_WARM_START:
            chosen = warm
        else:
            chosen = train
        chosen += [(a, b), (b, a)] if a != b else [(a, b)]
    return tuple(warm), tuple(train), tuple(evaluation)


class Addition(TaskSource):
    """`47+38=` → `85`: sums of two two-digit numbers, which the model `tiny:addition` half knows."""

    num_evaluation: PositiveInt = Field(ADDITION_EVALUATION, le=ADDITION_EVALUATION)
    """Problems to evaluate on, of the 1,000 that are never trained on."""

    swapped: bool = False
    """A second variant of every task, `swapped`: `38+47=` of `47+38=`, which has the same answer."""

    def train(self) -> Sequence[Task]:
        return [self._task(p) for p in addition_problems()[1]]

    def evaluation(self) -> Sequence[Task]:
        return [self._task(p) for p in addition_problems()[2][: self.num_evaluation]]

    def _task(self, problem: Problem) -> Task:
        a, b = problem
        task = Task.of(f"addition/{a}+{b}", f"{a}+{b}=", str(a + b), source="addition")
        if self.swapped:
            task.variants["swapped"] = (Message("user", f"{b}+{a}="),)
        return task
