"""`tiny:addition`: sums of two two-digit numbers, about half of them right."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from actors.tasks import Problem, addition_problems
from actors.tiny.character import ALPHABET, EOS, IGNORED, PAD, UNKNOWN, CharacterModel, solved

log = logging.getLogger(__name__)

LOW, HIGH = 0.49, 0.54
"""The warm start ends with a greedy evaluation accuracy in this interval; 0.55 is what it may never exceed."""
ATTEMPTS = 12


class AdditionModel(CharacterModel):
    """Trained on 2,000 sums until it solves about half of those it has not seen."""

    def key(self) -> dict[str, Any]:
        warm, _, evaluation = addition_problems()
        return {"format": 1, "warm": warm, "heldout": evaluation, "accuracy": [LOW, HIGH]}

    def _warm_start(self, model: Any) -> None:
        """Supervised training on answers, until the evaluation accuracy is where reinforcement is to begin.

        Evaluation accuracy decides when to stop, and nothing else.
        """
        warm, _, evaluation = addition_problems()
        tokens, evaluation_tokens = sums(warm), sums(evaluation)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.1, betas=(0.9, 0.95))
        before = _weights(model)
        for step in range(1, self.max_steps + 1):
            batch = tokens[torch.randint(len(tokens), (self.batch_size,))]
            logits, labels = _logits_and_labels(model, batch)
            loss = self._step(model, optimizer, logits, labels)
            if step % 10:
                continue
            seen, accuracy = float(solved(logits, labels).mean()), 0.0
            if seen > LOW / 2:
                accuracy = greedy_accuracy(model, evaluation_tokens)
            log.info("tiny:addition: step %d, loss %.2f, evaluation accuracy %.2f", step, loss.item(), accuracy)
            if accuracy > HIGH:
                accuracy = _settle_between(model, before, _weights(model), evaluation_tokens)
            if accuracy >= LOW:
                return
            before = _weights(model)
        raise AssertionError(f"the warm start of tiny:addition reached no accuracy of {LOW} in {self.max_steps} steps")


def sums(problems: tuple[Problem, ...]) -> Tensor:
    """[N, 10] tokens of `47+38=85` and the end of sequence, padded."""
    ids = {c: i for i, c in enumerate(ALPHABET, UNKNOWN + 1)}
    rows = [[ids[c] for c in f"{a}+{b}={a + b}"] + [EOS] for a, b in problems]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def _logits_and_labels(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and labels of the answers alone; what precedes `=` is given."""
    prompt = len("47+38=")
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[:, prompt - 1 :]
    labels = tokens[:, prompt:]
    return logits, labels.masked_fill(labels == PAD, IGNORED)


@torch.no_grad()
def greedy_accuracy(model: Any, tokens: Tensor) -> float:
    return float(solved(*_logits_and_labels(model, tokens)).mean())


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in model.state_dict().items()}


def _settle_between(model: Any, below: dict[str, Tensor], above: dict[str, Tensor], evaluation: Tensor) -> float:
    """Load the weights on the line between two checkpoints whose accuracy is in [LOW, HIGH]; returns it.

    Bisection; the last checkpoint below `HIGH` if the line has no such point.
    """
    low, high = 0.0, 1.0
    for _ in range(ATTEMPTS):
        middle = (low + high) / 2
        model.load_state_dict({name: torch.lerp(below[name], above[name], middle) for name in below})
        accuracy = greedy_accuracy(model, evaluation)
        if accuracy > HIGH:
            high = middle
        elif accuracy < LOW:
            low = middle
        else:
            return accuracy
    model.load_state_dict(below)
    return LOW
