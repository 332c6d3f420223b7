"""A tiny reward model on features that judges rate, for few labels (arXiv:2402.15473)."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt, PrivateAttr
from torch import Tensor, nn

from cluster.config import RewardSection
from cluster.plugins import Plugin
from cluster.types import Group, Provenance, Scores, Task
from rewards.base import Reward, Services
from rewards.learned.labels import pair, pair_of
from rewards.learned.network import LearnedNetwork, order_agreement
from rewards.learned.preferences import preference_loss
from rewards.learned.reward_model import scores_of
from rewards.learned.step_rewards import OutcomeReward, Told
from rewards.registry import build_reward


class FeatureNet(nn.Module):
    """Features as JSON lists of numbers → [N, 1]: K → hidden → 1 with ReLU, or a sum of weighted features."""

    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *((nn.Linear(num_features, hidden), nn.ReLU()) if hidden else ()),
            nn.Linear(hidden or num_features, 1, bias=False),
        )

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "N 1"]:
        return self.layers(torch.tensor([json.loads(text) for text in captions], dtype=torch.float32))


class FeatureModel(LearnedNetwork):
    """φ(f) of the features of a response, with loss −log σ(φ(f⁺) − φ(f⁻)) on pairs (arXiv:2402.15473).

    The paper learns from 940 pairs. Its network's size is not known to us: 7 → 32 → 1 is our reading. `hidden = 0` is a
    weighted sum, whose weights say what the labels go by.
    """

    num_features: PositiveInt = 7
    """K, the number of `features` of the reward."""
    hidden: int = Field(default=32, ge=0)
    """Width of the hidden layer; 0: none."""
    weight_decay: NonNegativeFloat = 1e-3
    """Times the sum of squared weights, in the loss: features of judges go together."""
    lr: float = Field(default=1e-2, gt=0)
    batch_size: PositiveInt = 64
    compares: ClassVar[bool] = True
    num_outputs: ClassVar[int] = 1

    def _network(self) -> Any:
        return FeatureNet(self.num_features, self.hidden)

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        first, second = zip(*map(pair_of, keys), strict=True)
        squared = torch.stack([(weights**2).sum() for weights in self._net.parameters()]).sum()
        loss = preference_loss(self._net(first)[:, 0], self._net(second)[:, 0], batch)
        return loss + self.weight_decay * squared

    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        return self.outputs(captions)[:, 0].double().numpy()

    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        first, second = zip(*map(pair_of, keys), strict=True) if keys else ((), ())
        return order_agreement(self.predict(first), self.predict(second), values)


class Feature(Plugin):
    """One rated feature of a response."""

    use: str = "judge"
    """The reward that rates it; anything that `rewards.use` takes."""
    options: dict[str, Any] = {}
    """Options of that reward, such as a judge's rubric."""


class FeatureReward(OutcomeReward):
    """φ of K features of each response: a judge rates them by rubrics, a tiny network learns what they are worth.

    Of every group `pairs` pairs are labelled by the reward `outcome`, which stands where the paper has people: of two
    responses the one with more is preferred, and equal ones are skipped. Features are cut to [`lowest`, `highest`], or
    the policy would buy one with all the others. `mean` is the paper's ablation: the mean of the features, without a
    model. Until a first version is published it fails.
    """

    model: str = "features"
    """The section `[reward_models.NAME]`, with `use = "features"` and `judge = ""`."""
    features: tuple[Feature, ...] = Field(min_length=1)
    """What is rated."""
    lowest: float = 0.0
    """Least that a feature counts for."""
    highest: float = 5.0
    """Most that a feature counts for."""
    pairs: PositiveInt = 4
    """Labelled pairs of a group."""
    mean: bool = False
    """The mean of the features is the reward."""
    _rewards: tuple[Reward, ...] = PrivateAttr(default=())

    def model_post_init(self, _: object) -> None:
        self._rewards = tuple(
            build_reward(RewardSection(use=f.use, options=f.options), f"features[{i}]")
            for i, f in enumerate(self.features)
        )

    def evaluates(self) -> bool:
        return super().evaluates() or any(reward.evaluates() for reward in self._rewards)

    def declines(self, task: Task) -> str:
        return next(filter(None, (r.declines(task) for r in (*self._rewards, self._verifier()))), "")

    async def prepare(self, services: Services) -> None:
        await super().prepare(services)
        for reward in self._rewards:
            await reward.prepare(services)

    def labels_per_group(self, group_size: int) -> int | None:
        return None  # equal outcomes are skipped

    async def score(self, group: Group, services: Services) -> Scores:
        found = await asyncio.gather(*(reward.score(group, services) for reward in self._rewards))
        features = np.clip(np.stack([s.values for s in found], 1), self.lowest, self.highest)
        known = np.array([np.isfinite(row).all() for row in features], bool)
        for i, rated in enumerate(features[known].T if known.any() else ()):
            services.log(f"feature_{i}", float(rated.mean()))
        if self.mean:
            return Scores.of(features.mean(1), Provenance(note="" if known.all() else "a feature is unknown"))
        outcomes = (await self._verifier().score(group, services)).values
        texts = [json.dumps(row.tolist()) if ok else "" for row, ok in zip(features, known, strict=True)]
        client = services.reward_model(self.model)
        await client.tell(self._labels(group.id, texts, outcomes), version=Told.version)
        values = np.full(len(group), np.nan)
        scored, version = await scores_of(client, [text for text in texts if text])
        values[known] = scored
        note = "" if known.all() else "a feature is unknown"
        return Scores.of(values, Provenance(model=self.model, note=note), version=version)

    def _labels(self, group: str, texts: Sequence[str], outcomes: Float[np.ndarray, " G"]) -> dict[str, float]:
        """The preferences of a group by its outcomes, in an order drawn by the group's id."""
        rng = random.Random(group)
        apart = [
            (i, j)
            for i, j in combinations(range(len(texts)), 2)
            if texts[i] and texts[j] and texts[i] != texts[j] and abs(outcomes[i] - outcomes[j]) > 0
        ]
        picked = rng.sample(apart, min(self.pairs, len(apart)))
        turned = [(i, j) if rng.random() < 0.5 else (j, i) for i, j in picked]
        return {pair(texts[i], texts[j]): float(outcomes[i] > outcomes[j]) for i, j in turned}
