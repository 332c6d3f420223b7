"""`tiny:corrector`: half knows sums of two two-digit numbers, and has watched answers that are looked over again."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from actors.tasks import Problem, addition_problems
from actors.tiny.addition import AdditionModel
from actors.tiny.character import Part, dialogues, logits_and_choices

log = logging.getLogger(__name__)

ASKED_AGAIN = "?"
"""The instruction between the two answers, which the recipe's environment must give too."""
FIRST_RIGHT = 0.6
"""How often the demonstrator's first answer is right,"""
CORRECTS = 0.4
"""how often a wrong one is corrected,"""
SPOILS = 0.2
"""and how often a right one is changed to a wrong one. Other answers are repeated."""
OFF_BY = 10
STEPS = 100
"""Batches of two attempts, after the warm start of `tiny:addition`."""


class CorrectorModel(AdditionModel):
    """`tiny:addition`, then trained on two attempts at each of the same sums.

    A second look helps the demonstrator about as much as it harms, so that a policy gains by learning when to change
    its answer.
    """

    def key(self) -> dict[str, Any]:
        return super().key() | {"habits": [FIRST_RIGHT, CORRECTS, SPOILS, OFF_BY, STEPS, ASKED_AGAIN]}

    def _warm_start(self, model: Any) -> None:
        super()._warm_start(model)
        warm, _, _ = addition_problems()
        rng = np.random.default_rng(self.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr / 2, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, STEPS + 1):
            rows = rng.integers(len(warm), size=self.batch_size)
            tokens, chosen = dialogues([demonstration(warm[i], rng) for i in rows])
            loss = self._step(model, optimizer, *logits_and_choices(model, tokens, chosen))
            if step % 10 == 0:
                log.info("tiny:corrector: step %d of two attempts, loss %.2f", step, loss.item())


def demonstration(problem: Problem, rng: np.random.Generator) -> list[Part]:
    """`47+38=` `84` `?` `85`."""
    total = sum(problem)
    wrong = total + int(rng.integers(1, OFF_BY)) * int(rng.choice([-1, 1]))
    first = total if rng.random() < FIRST_RIGHT else wrong
    changed = rng.random() < (SPOILS if first == total else CORRECTS)
    second = (wrong if first == total else total) if changed else first
    a, b = problem
    return [(f"{a}+{b}=", False), (str(first), True), (ASKED_AGAIN, False), (str(second), True)]
