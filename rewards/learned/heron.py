"""Rewards from a ranking of measurable factors, without a judge (HERON, arXiv:2309.02632)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt, PrivateAttr

from cluster.config import RewardModelSection, RewardSection
from cluster.plugins import Plugin
from cluster.types import Group, Provenance, Scores, Task
from rewards.base import Reward, Services
from rewards.learned.base import RewardModelReward, Versioned
from rewards.learned.caption_labels import Complete
from rewards.learned.episodes import Episode, episodes_of
from rewards.learned.labels import pair
from rewards.learned.reward_model import scores_of
from rewards.learned.step_rewards import Told
from rewards.registry import build_reward


class Factor(Plugin):
    """One measurable factor of an episode, and how much it must differ to decide."""

    use: str
    """The reward that measures it; anything that `rewards.use` takes. More is better."""
    options: dict[str, Any] = {}
    """Options of that reward."""
    margin: NonNegativeFloat = 0.1
    """σ_l: two episodes differ in the factor if they differ by more than σ_l standard deviations of it."""


class Factors(Plugin):
    """Factors in the order of their importance."""

    listed: tuple[Factor, ...]
    _rewards: tuple[Reward, ...] = PrivateAttr(default=())

    @property
    def rewards(self) -> tuple[Reward, ...]:
        if not self._rewards:
            self._rewards = tuple(
                build_reward(RewardSection(use=f.use, options=f.options), f"factors[{i}]")
                for i, f in enumerate(self.listed)
            )
        return self._rewards

    async def of(self, group: Group, episodes: Sequence[Episode], services: Services) -> Float[np.ndarray, "E m"]:
        """Return the factors of each episode: over a chain of rollouts the sum of what comes at tokens or in events,
        else the mean."""
        scores = await asyncio.gather(*(reward.score(group, services) for reward in self.rewards))
        columns = [
            [_whole(f, s.values if s.tokens is None else np.array([t.sum() for t in s.tokens]), s, e) for e in episodes]
            for f, s in zip(self.listed, scores, strict=True)
        ]
        return np.array(columns, np.float64).reshape(len(self.listed), len(episodes)).T

    @property
    def margins(self) -> Float[np.ndarray, " m"]:
        return np.array([f.margin for f in self.listed])


def _whole(factor: Factor, values: np.ndarray, scores: Scores, episode: Episode) -> float:
    own = values[list(episode.rollouts)]
    return float(own.sum() if scores.tokens is not None or factor.use == "events" else own.mean())


def decided(
    one: Float[np.ndarray, " m"], other: Float[np.ndarray, " m"], margins: Float[np.ndarray, " m"]
) -> tuple[int, int]:
    """Return 1 where the first is better, −1 where the second is, 0 where no factor decides, and the deciding level,
    counted from 1.

    The factors are compared in their order; the first that differs by more than its margin decides.
    """
    for level, (a, b, margin) in enumerate(zip(one, other, margins, strict=True), 1):
        if a > b + margin:
            return 1, level
        if b > a + margin:
            return -1, level
    return 0, 0


def win_rates(factors: Float[np.ndarray, "E m"], margins: Float[np.ndarray, " m"]) -> Float[np.ndarray, " E"]:
    """Return the share of the other episodes that each beats, ties counting half; NaN where a factor is unknown."""
    known = np.isfinite(factors).all(1)
    rates = np.full(len(factors), np.nan)
    for i in np.flatnonzero(known):
        wins = [0.5 + 0.5 * decided(factors[i], factors[j], margins)[0] for j in np.flatnonzero(known) if j != i]
        rates[i] = float(np.mean(wins)) if wins else np.nan
    return rates


def scaled(factors: Float[np.ndarray, "E m"], margins: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """δ_l = σ_l · std(f_l), the population's, over the episodes whose factors are known."""
    known = factors[np.isfinite(factors).all(1)]
    return margins * known.std(0) if len(known) else margins * 0.0


class Heron(Reward):
    """Share of its group's other episodes that an episode beats by the decision tree over ranked factors.

    Pair by pair the factors are compared in the order of their importance; the first that differs by more than
    δ_l = σ_l · std(f_l) decides, and a pair that none decides is a tie. This is HERON's labelling (arXiv:2309.02632) as
    a reward of a group, without a model, which is ours; so is the deviation within the group, where the paper takes a
    minibatch. `heron_model` trains the paper's reward model.
    """

    factors: tuple[Factor, ...] = Field(min_length=1)
    """Factors, the most important first."""
    _factors: Factors = PrivateAttr()

    def model_post_init(self, _: object) -> None:
        self._factors = Factors(listed=self.factors)

    def evaluates(self) -> bool:
        return any(reward.evaluates() for reward in self._factors.rewards)

    def declines(self, task: Task) -> str:
        return next(filter(None, (reward.declines(task) for reward in self._factors.rewards)), "")

    async def prepare(self, services: Services) -> None:
        for reward in self._factors.rewards:
            await reward.prepare(services)

    async def score(self, group: Group, services: Services) -> Scores:
        episodes = episodes_of(group)
        factors = await self._factors.of(group, episodes, services)
        rates = win_rates(factors, scaled(factors, self._factors.margins))
        return Scores.of(spread_over(episodes, rates, len(group)), Provenance(note="a factor is unknown"))


class HeronModel(RewardModelReward):
    """r(x, y) of a Bradley-Terry model that learns the decision tree over ranked factors (HERON, arXiv:2309.02632).

    Of every group each episode is compared with `pairs` others drawn at random, and what the tree decides is a label;
    ties are skipped. Loss −log σ(r_w − r_l). The text of an episode is its turns with what was seen before them. The
    paper's model reads an observation vector; its released code reuses σ₂ for later levels and lets the model act in
    value targets alone, neither of which is followed. Until a first version is published it fails.
    """

    model: str = "heron"
    """The section `[reward_models.NAME]`, with `use = "bradley_terry"` and `judge = ""`."""
    factors: tuple[Factor, ...] = Field(min_length=1)
    """Factors, the most important first."""
    pairs: PositiveInt = 1
    """Others that an episode is compared with; one in the paper's code."""
    _factors: Factors = PrivateAttr()

    def model_post_init(self, _: object) -> None:
        self._factors = Factors(listed=self.factors)

    def evaluates(self) -> bool:
        return any(reward.evaluates() for reward in self._factors.rewards)

    async def prepare(self, services: Services) -> None:
        await super().prepare(services)
        for reward in self._factors.rewards:
            await reward.prepare(services)

    def labels_per_group(self, group_size: int) -> int | None:
        return None  # ties are skipped

    def labels_by(self, section: RewardModelSection, complete: Complete | None, *, compares: bool) -> Versioned:
        return Told()

    async def score(self, group: Group, services: Services) -> Scores:
        episodes = episodes_of(group)
        texts = [e.key if e.steps else group.rollouts[e.rollouts[0]].text for e in episodes]
        factors = await self._factors.of(group, episodes, services)
        client = services.reward_model(self.model)
        await client.tell(self._labels(group.id, texts, factors), version=Told.version)
        values, version = await scores_of(client, texts)
        return Scores.of(spread_over(episodes, values, len(group)), Provenance(model=self.model), version=version)

    def _labels(self, group: str, texts: list[str], factors: Float[np.ndarray, "E m"]) -> dict[str, float]:
        # By the group's id: scored again under the next version, it tells nothing new.
        rng, known = random.Random(group), np.flatnonzero(np.isfinite(factors).all(1)).tolist()
        margins, labels = scaled(factors, self._factors.margins), dict[str, float]()
        for i in known:
            others = [j for j in known if texts[j] != texts[i]]
            for j in rng.sample(others, min(self.pairs, len(others))):
                if better := decided(factors[i], factors[j], margins)[0]:
                    labels[pair(texts[i], texts[j])] = 0.5 + 0.5 * better
        return labels


def spread_over(episodes: Sequence[Episode], values: Float[np.ndarray, " E"], count: int) -> Float[np.ndarray, " G"]:
    """Return each episode's value for all its rollouts."""
    result = np.full(count, np.nan)
    for episode, value in zip(episodes, values, strict=True):
        result[list(episode.rollouts)] = value
    return result
