"""Soft punishment of overlong rollouts (DAPO, arXiv:2503.14476, section 3.4)."""

from __future__ import annotations

from pydantic import PositiveInt, model_validator

from cluster.types import Group, Scores
from rewards.base import Reward, Services


class LengthPenalty(Reward):
    """0 up to `max_tokens - cache_tokens`, then falling linearly to −1 at `max_tokens` and beyond.

    Equation 13 of the paper; lengths are the tokens that the policy chose. Use it with weight 1 beside a reward of 0
    and 1. `max_tokens` is the paper's maximum length, at most what the rollout allows, or nothing is ever punished.
    """

    max_tokens: PositiveInt
    """Length, in tokens that the policy wrote, from which a rollout scores −1."""
    cache_tokens: PositiveInt
    """Width of the interval in which the punishment grows."""

    @model_validator(mode="after")
    def _fits(self) -> LengthPenalty:
        if self.cache_tokens > self.max_tokens:
            raise ValueError(f"cache_tokens = {self.cache_tokens} exceeds max_tokens = {self.max_tokens}")
        return self

    async def score(self, group: Group, services: Services) -> Scores:
        free = self.max_tokens - self.cache_tokens
        return Scores.of([-min(max(r.num_tokens - free, 0) / self.cache_tokens, 1.0) for r in group.rollouts])
