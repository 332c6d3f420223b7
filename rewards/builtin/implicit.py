"""What training has added to a rollout's likelihood: the reward that a policy implies (CREAM, arXiv:2410.12735)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from cluster.types import Group, Scores
from rewards.base import Reward, Services
from rewards.scorers.passages import chosen, passage_of, scores_of


class Implicit(Reward):
    """log π(y | x) − log π₀(y | x), nats, summed over the tokens that the policy chose; π and π₀ are two scorers.

    DPO's reward without its β (arXiv:2305.18290). CREAM ranks a group by that of the policy of now and by that of the
    round before (`previous@2`), both against the first weights. Where π *is* the first weights, as before there is a
    round before, all would be equal: then it is log π₀(y | x) / T, as in the released code (`rewarding.py`). That later
    rounds still subtract the first weights is not documented there. A rollout without a chosen token abstains.
    """

    scope: ClassVar = "rollout"
    services: ClassVar = ("scorer",)
    scorer: str = "scorer"
    """π: its section's name, `[scorers.NAME]`, of model `policy`, `previous` or `previous@2`."""
    base: str = "initial"
    """π₀: the same of model `initial`."""

    def scorers(self) -> Sequence[str]:
        return (self.scorer, self.base)

    async def prepare(self, services: Services) -> None:
        for name in self.scorers():
            services.scorer(name)

    async def score(self, group: Group, services: Services) -> Scores:
        passages = [passage_of(r) for r in group.rollouts]
        ours = await services.scorer(self.scorer).read(passages)
        first = await services.scorer(self.base).read(passages)
        values = [
            implied(one.logprobs[mask], None if one.is_initial else other.logprobs[mask])
            for one, other, mask in zip(ours, first, map(chosen, group.rollouts), strict=True)
        ]
        return scores_of(np.array(values), self.scorer, ours)


def implied(logprobs: Float[np.ndarray, " T"], base: Float[np.ndarray, " T"] | None) -> float:
    """Sum of the differences from `base`; without one the mean log-prob. NaN of no tokens."""
    if len(logprobs) == 0:
        return float("nan")
    return float(logprobs.mean() if base is None else (logprobs - base).sum())
