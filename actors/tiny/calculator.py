"""`tiny:calculator`: has watched somebody who uses a calculator for some sums and guesses the others."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np
import torch

from actors.environments.calculator import shown
from actors.tasks.calculator import Sum, sums_of_three
from actors.tiny.character import CharacterModel, Part, dialogues, logits_and_choices, solved

log = logging.getLogger(__name__)

CALCULATOR_ACCURACY = 0.25
CAREFUL = (0.05, 0.6)
"""How likely the demonstrator uses it for sums that begin with 10, and with 99."""
FORGETFUL = 0.2
STOPPED_BY = 300
"""Evaluation sums that decide when the warm start ends, and nothing else."""
OFF_BY = 30


class CalculatorModel(CharacterModel):
    """Has watched somebody who uses a calculator for large sums, guesses small ones, and forgets the third number.

    The larger the first number, the likelier the calculator, so that greedy sampling, too, solves a part of the sums.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 2
    lr: float = 3e-3
    batch_size: int = 64

    name: ClassVar[str] = "tiny:calculator"

    def key(self) -> dict[str, Any]:
        warm, _, evaluation = sums_of_three()
        habits = [CAREFUL, FORGETFUL, OFF_BY]
        return {"format": 1, "warm": warm, "heldout": evaluation, "accuracy": CALCULATOR_ACCURACY, "habits": habits}

    def _warm_start(self, model: Any) -> None:
        """Train on demonstrations until greedy sampling reaches CALCULATOR_ACCURACY on evaluation sums."""
        warm, _, evaluation = sums_of_three()
        rng = np.random.default_rng(self.seed)
        tokens, chosen = dialogues([self.seen(demonstration(s, rng)) for s in warm], self.words)
        right = dialogues([self.seen(worked_out(s)) for s in evaluation[:STOPPED_BY]], self.words)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        for step in range(1, self.max_steps + 1):
            rows = torch.randint(len(tokens), (self.batch_size,))
            logits, labels = logits_and_choices(model, tokens[rows], chosen[rows])
            loss = self._step(model, optimizer, logits, labels)
            if step % 10:
                continue
            with torch.no_grad():
                accuracy = float(solved(*logits_and_choices(model, *right)).mean())
            log.info("%s: step %d, loss %.2f, evaluation accuracy %.2f", self.name, step, loss.item(), accuracy)
            if accuracy >= CALCULATOR_ACCURACY:
                return
        raise AssertionError(f"{self.name} reached no accuracy of {CALCULATOR_ACCURACY} in {self.max_steps} steps")

    def seen(self, parts: list[Part]) -> list[Part]:
        """Return a conversation as the model sees it."""
        return parts


def worked_out(numbers: Sum) -> list[Part]:
    """`12+34+56=` `[12+34]` `=46;` `[46+56]` `=102;` `102`."""
    a, b, c = numbers
    calls = [(f"[{a}+{b}]", True), (shown(a + b), False), (f"[{a + b}+{c}]", True), (shown(a + b + c), False)]
    return [(f"{a}+{b}+{c}=", False), *calls, (str(a + b + c), True)]


def demonstration(numbers: Sum, rng: np.random.Generator) -> list[Part]:
    """What the demonstrator did: the above, a guess, or the sum of the first two."""
    a, b, _ = numbers
    low, high = CAREFUL
    question, *parts = worked_out(numbers)
    if rng.random() > low + (high - low) * (a - 10) / 89:
        return [question, (str(sum(numbers) + int(rng.integers(1, OFF_BY)) * int(rng.choice([-1, 1]))), True)]
    return [question, *parts[:2], (str(a + b), True)] if rng.random() < FORGETFUL else [question, *parts]
