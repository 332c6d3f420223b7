"""How much a response looks as if the policy behind a reference had written it (POLAR, arXiv:2507.05197)."""

from __future__ import annotations

import math
import random
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import PositiveInt

from cluster.thoughts import spoken_by
from cluster.types import Group, Provenance, Scores, Task
from rewards.base import Services
from rewards.learned.labels import BETWEEN, pair
from rewards.learned.reward_model import scores_of
from rewards.learned.step_rewards import OutcomeReward, Told

SEPARATOR, FINAL = "<|reward|>", "<|end|>"
"""Between the two trajectories, and behind them: where the released model reads its reward."""
CONTEXT = 16_380
"""The released model's 16,384 tokens less its four special ones."""


class Polar(OutcomeReward):
    """r(prompt, reference, response) of a Bradley-Terry model that reads both trajectories, a logit without bounds.

    Fine-tuning: of a group's responses, ranked by `outcome`, the best is the reference τ_A, and of two others of
    different rank the better is to have the larger r(p, τ_A, τ_B), −log σ(r(p, τ_A, τ_B) − r(p, τ_A, τ_C)): `pairs` of
    them. The reference of a score is the task's answer. Text, budget and loss are the paper's and its code's; thoughts
    are left out of a response. Its pre-training on a pool of policies, without which it measures 3 points less, is not
    here, and neither are the released weights: the model begins with an encoder of yours. Copying the reference is the
    best there is, so watch `reward/logged_polar_copied`; shape the unbounded score with `par`. Until a first version is
    published it fails.
    """

    model: str = "polar"
    """The section `[reward_models.NAME]`, with `use = "bradley_terry"` and `judge = ""`."""
    outcome: str = "exact"
    pairs: PositiveInt = 4
    """Triples of a group that are learnt from."""
    reference: Literal["answer", "best"] = "answer"
    """What a response is compared with: the task's answer, or the group's best by `outcome`."""
    context: PositiveInt = CONTEXT
    """Characters of a text; the prompt stands in it twice and is cut at its head."""

    def declines(self, task: Task) -> str:
        if self.reference == "answer" and not task.answer:
            return f"task {task.id} has no reference answer"
        return super().declines(task)

    def labels_per_group(self, group_size: int) -> int | None:
        return None  # responses of equal rank are not compared

    async def score(self, group: Group, services: Services) -> Scores:
        if why := self.declines(group.task):
            return Scores.abstained(len(group), why)
        outcomes = (await self._verifier().score(group, services)).values
        said = [spoken_by(rollout) for rollout in group.rollouts]
        best = said[int(np.nanargmax(outcomes))] if np.isfinite(outcomes).any() else None
        client = services.reward_model(self.model)
        if best is not None:
            await client.tell(self._labels(group, said, best, outcomes), version=Told.version)
        reference = group.task.answer if self.reference == "answer" else best
        if reference is None:
            return Scores.failed(len(group), "no outcome is known, so no response is the best")
        services.log("polar_copied", float(np.mean([text == reference for text in said])))
        texts = [self._text(group.task.prompt, reference, text) for text in said]
        values, version = await scores_of(client, texts)
        return Scores.of(values, Provenance(model=self.model), version=version)

    def _labels(self, group: Group, said: list[str], best: str, outcomes: Float[np.ndarray, " G"]) -> dict[str, float]:
        """The group's triples, in an order drawn by its id."""
        rng = random.Random(group.id)
        ranked = [(i, j) for i, j in combinations(range(len(said)), 2) if abs(outcomes[i] - outcomes[j]) > 0]
        labels = {}
        for i, j in rng.sample(ranked, min(self.pairs, len(ranked))):
            first, second = (i, j) if rng.random() < 0.5 else (j, i)
            texts = (self._text(group.task.prompt, best, said[n]) for n in (first, second))
            labels[pair(*texts)] = float(outcomes[first] > outcomes[second])
        return labels

    def _text(self, prompt: str, reference: str, candidate: str) -> str:
        kept = prompt_budget(len(reference), len(candidate), self.context)
        return trajectories(prompt[max(0, len(prompt) - kept) :], reference, candidate)


def trajectories(prompt: str, reference: str, candidate: str) -> str:
    """Both trajectories as one text, which ends where the reward is read."""
    text = f"{prompt}\n{reference}{SEPARATOR}{prompt}\n{candidate}{FINAL}"
    return text.replace(BETWEEN, "\N{REPLACEMENT CHARACTER}")


def prompt_budget(reference: int, candidate: int, context: int = CONTEXT) -> int:
    """How much of a prompt there is room for, twice, beside a reference and a candidate of these lengths."""
    return max(0, (context - reference - candidate) // 2)


def triple_loss(better: float, worse: float) -> float:
    """−log σ(r(p, τ_A, τ_B) − r(p, τ_A, τ_C)), nats."""
    return math.log1p(math.exp(worse - better))
