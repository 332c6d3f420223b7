"""`tiny:talker`: half knows sums of two two-digit numbers, and says up to three times "so" before it answers."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from actors.tasks import Problem, addition_problems
from actors.tiny.addition import AdditionModel
from actors.tiny.character import Part, dialogues, logits_and_choices

log = logging.getLogger(__name__)

FILLER = "so\n\n"
"""One step of a rollout: steps end at an empty line."""
MOST_FILLERS = 3
STEPS = 100
"""Batches of talk, after the warm start of `tiny:addition`."""


class TalkerModel(AdditionModel):
    """`tiny:addition`, then trained on the same sums with zero to three lines of talk before the answer.

    Answers of every length are right equally often, so that what a reward says of words or of length decides how much
    the policy will talk.
    """

    def key(self) -> dict[str, Any]:
        return super().key() | {"talk": [FILLER, MOST_FILLERS, STEPS]}

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
                log.info("tiny:talker: step %d of talk, loss %.2f", step, loss.item())


def demonstration(problem: Problem, rng: np.random.Generator) -> list[Part]:
    """`47+38=` `so`, an empty line, `85`."""
    a, b = problem
    return [(f"{a}+{b}=", False), (FILLER * int(rng.integers(MOST_FILLERS + 1)) + str(a + b), True)]
