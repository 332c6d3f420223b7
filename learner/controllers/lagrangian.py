"""Rates to keep instead of weights to tune: constraints with multipliers (arXiv:2412.07177, after arXiv:2112.12228)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, PositiveFloat

from cluster.config import Section
from learner.controllers.base import Controller
from learner.types import Considered

if TYPE_CHECKING:
    from cluster.types import AssembledBatch


class Constraint(Section):
    """One behaviour that may occur in at most a share of the rollouts."""

    reward: str
    """The reward that is 1 where a rollout shows the behaviour, else 0."""
    at_most: float = Field(ge=0, le=1)
    """d: the mean that is kept, for example 0.1; unknown scores count in no mean."""
    key: str
    """Where that reward's weight stands, such as `rewards.1.weight`."""


class Lagrangian(Controller):
    """Weights of a main reward and of K constraints on a simplex, moved until the constraints hold:

        w = softmax(0, z_1 … z_K)      reward = w_0 · main − Σ_k w_k · c_k      z_k ← z_k + η · (mean c_k − d_k)

    A constraint that is violated gains weight at each step, one that is kept loses it. The mean is taken over all
    groups that a step looked at, dropped ones included. Direct behaviour specification (arXiv:2112.12228) is trained
    with critics there; that the weights act on rewards of groups, and the exact form of the update, are a proxy of
    ours, by summaries of the thesis arXiv:2412.07177.
    """

    main_key: str = "rewards.0.weight"
    """Where the main reward's weight stands."""
    constraints: tuple[Constraint, ...] = Field(min_length=1)
    """What must be kept."""
    rate: PositiveFloat = 0.1
    """η: step size of the multipliers."""

    def init_state(self) -> list[float]:
        return [0.0] * len(self.constraints)

    def observe(self, considered: Considered) -> list[list[float]]:
        """[sum, count] of the known scores of each constraint's reward."""
        found = []
        for constraint in self.constraints:
            scored = [scores[constraint.reward].values for scores in considered.scores if constraint.reward in scores]
            known = np.concatenate(scored) if scored else np.zeros(0)
            known = known[np.isfinite(known)]
            found.append([float(known.sum()), float(len(known))])
        return found

    def update(self, state: list[float], batch: AssembledBatch) -> list[float]:
        observed = batch.observed or [[0.0, 0.0]] * len(self.constraints)
        means = [
            total / count if count else c.at_most for c, (total, count) in zip(self.constraints, observed, strict=True)
        ]
        limits = [c.at_most for c in self.constraints]
        return multipliers(state, means, limits, self.rate)

    def patch(self, state: list[float]) -> dict[str, Any]:
        main, *others = weights(state)
        return {self.main_key: main, **{c.key: -w for c, w in zip(self.constraints, others, strict=True)}}


def multipliers(z: list[float], means: list[float], limits: list[float], rate: float) -> list[float]:
    """z_k + rate · (mean_k − limit_k)."""
    return [value + rate * (mean - limit) for value, mean, limit in zip(z, means, limits, strict=True)]


def weights(z: list[float]) -> list[float]:
    """softmax(0, z_1 … z_K): the main objective's weight first."""
    exponents = np.exp(np.array([0.0, *z]) - max([0.0, *z]))
    return (exponents / exponents.sum()).tolist()
