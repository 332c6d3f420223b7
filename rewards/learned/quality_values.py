"""Values of partial solutions that a search's own tree labels (ReST-MCTS*, arXiv:2406.03816)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt
from torch import Tensor

from cluster.types import ABSTAINED, FAILED, SCORED, Group, Provenance, Rollout, Scores
from rewards.base import Services
from rewards.learned.base import RewardModelReward, Versioned
from rewards.learned.caption_labels import Complete
from rewards.learned.episodes import NAMED, STEP
from rewards.learned.labels import BETWEEN
from rewards.learned.step_models import StepModel, outcome_agreement
from rewards.learned.step_rewards import OutcomeReward, Told


def quality_values(paths: Sequence[Sequence[int]], right: Sequence[bool]) -> dict[int, float]:
    """Return the value of each node on the way to an evaluated end, by its id; nothing where no end is right.

    `paths` are the ids of nodes from below the root to each end. With v₀ = 0,

        v_k = max(v_{k−1} + (1 − v_{k−1}) (1 − 2 r_k) / (m_k + 1), 0)

    r_k is 0 where a right end is at or below node k, else 1; m_k is the least number of further steps to a right end,
    for a wrong node that of its nearest ancestor that can still reach one (released code, arXiv:2406.03816).
    """
    if not any(right):
        return {}
    steps: dict[int, int] = {}
    whole = min(len(path) for path, good in zip(paths, right, strict=True) if good)
    for path, good in zip(paths, right, strict=True):
        for k, node in enumerate(path if good else ()):
            left = len(path) - 1 - k
            steps[node] = min(steps.get(node, left), left)
    values: dict[int, float] = {}
    for path in paths:
        value, left = 0.0, whole
        for node in path:
            left = steps.get(node, left)
            sign = 1.0 if node in steps else -1.0
            value = values.setdefault(node, max(value + sign * (1 - value) / (left + 1), 0.0))
    return values


def prefixes(prompt: str, rollout: Rollout) -> list[str]:
    """Return what the value model reads of each node on a rollout's path: the prompt and all that followed."""
    texts, written = list[str](), ""
    for node in rollout.path:
        written += node.text
        texts.append(
            f"{prompt}\n> {written}".replace(STEP, "\ufffd").replace(NAMED, "\ufffd").replace(BETWEEN, "\ufffd")
        )
    return texts


class QualityValue(StepModel):
    """v of a partial solution in [0, 1], by the mean squared error to labels that trees made (arXiv:2406.03816).

    The paper's model is a language model with a linear layer on the logits of the last place; `encoder = "initial"` has
    a head on the last hidden state, `char_cnn` reads the last 231 bytes. Keys may begin with the name of a tree: of one
    partial solution every tree tells its own label.
    """

    def inputs(self, key: str) -> list[str]:
        return [key.rpartition(NAMED)[2]]

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        return ((torch.stack([v[0] for v in self._of_episodes(keys)]) - batch) ** 2).mean()

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return super().predict(captions).clip(0.0, 1.0)

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        return outcome_agreement(self.predict([self.inputs(key)[0] for key in keys]), values)


class TreeValue(RewardModelReward):
    """v of a partial solution [G], by the version of the model `quality_value` that was published last.

    A critic of searches: it is given their unfinished rollouts. Rollouts without a path are abstained from.
    """

    model: str = "quality_value"
    """The section `[reward_models.NAME]`, with `use = "quality_value"` and `judge = ""`."""

    def labels_by(self, section: Any, complete: Complete | None, *, compares: bool) -> Versioned:
        return Told()

    async def score(self, group: Group, services: Services) -> Scores:
        client = services.reward_model(self.model)
        known = [i for i, r in enumerate(group.rollouts) if r.path]
        found = await client.predict([prefixes(group.task.prompt, group.rollouts[i])[-1] for i in known])
        values, state = np.full(len(group), np.nan), np.full(len(group), ABSTAINED, np.uint8)
        values[known] = found.values
        state[known] = np.where(np.isfinite(found.values), SCORED, FAILED)
        return Scores(values, state, (Provenance(model=self.model),), found.version)


class ReStMcts(OutcomeReward):
    """v of a right trace by the model that was published last, 1 before there is one; 0 for a wrong trace.

    Every group of a search tells the model `quality_value` the values of all nodes on the way to its ends
    (`quality_values`); a tree without a right end tells nothing. With the selector `threshold` and the term `nll` the
    policy is trained on right traces above a value, 0.2 and a least length in one filter that was released
    (ReST-MCTS*, arXiv:2406.03816).
    """

    model: str = "quality_value"
    """The section `[reward_models.NAME]`, with `use = "quality_value"` and `judge = ""`."""
    success: float = 0.5
    """An outcome above it is right."""
    least_steps: NonNegativeInt = Field(default=0)
    """A right trace of fewer steps is 0."""

    def labels_per_group(self, group_size: int) -> int | None:
        return None  # a tree without a right end tells nothing

    async def score(self, group: Group, services: Services) -> Scores:
        outcomes = (await self._verifier().score(group, services)).values
        ends = [i for i, r in enumerate(group.rollouts) if r.path and np.isfinite(outcomes[i])]
        client = services.reward_model(self.model)
        await client.tell(self._labels(group, ends, outcomes), version=Told.version)
        right = [i for i in ends if outcomes[i] > self.success and len(group.rollouts[i].path) >= self.least_steps]
        found = await client.predict([prefixes(group.task.prompt, group.rollouts[i])[-1] for i in right])
        values = np.where(np.isfinite(outcomes), 0.0, np.nan)
        values[right] = np.where(np.isfinite(found.values), found.values, 1.0)
        return Scores.of(values, Provenance(model=self.model, note="the outcome is unknown"), version=found.version)

    def _labels(self, group: Group, ends: Sequence[int], outcomes: Float[np.ndarray, " G"]) -> Mapping[str, float]:
        rollouts = [group.rollouts[i] for i in ends]
        values = quality_values(
            [[n.id for n in r.path] for r in rollouts], [bool(outcomes[i] > self.success) for i in ends]
        )
        return {
            f"{group.id}{NAMED}{text}": values[node.id]
            for rollout in rollouts
            for node, text in zip(rollout.path, prefixes(group.task.prompt, rollout), strict=True)
            if node.id in values
        }
