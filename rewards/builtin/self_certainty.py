"""How sure a model is of every token it wrote, by its whole distribution (Self-Certainty, arXiv:2502.18581)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from cluster.types import Group, Rollout, Scores
from rewards.base import Reward, Services
from rewards.parsing.answers import answer_of
from rewards.scorers.passages import chosen, passage_of, scores_of
from rewards.scorers.types import TokenStats


class SelfCertainty(Reward):
    """Mean over a rollout's T tokens of KL(uniform || p_t) = −(1/V) Σ_j log p_t(j) − log V, nats; 0 is a blind guess.

    p_t [V] is the distribution that token t was chosen from, at temperature 1, read by the scorer: V is the model's
    configured vocabulary, so the value is comparable within one model only. Made to choose among N responses: by the
    highest (selector `best`), or by a vote that it weighs (selector `borda`). As the reward itself it is the kind that
    collapses into confident nonsense: watch `eval/accuracy`.

    Source: arXiv:2502.18581 and its released code (`src/confidence_list.py`), which drops the first token's
    distribution and takes the one behind the last instead (`shift = "released"`).
    """

    scope: ClassVar = "rollout"
    services: ClassVar = ("scorer",)
    scorer: str = "scorer"
    """Its section's name, `[scorers.NAME]`."""
    shift: Literal["own", "released"] = "own"
    """Which distribution counts for a token: the one it was chosen from, or the one behind it as in the released
    script."""
    answered: bool = False
    """A rollout without an answer abstains; the released selection gives it −10⁹."""
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""

    async def prepare(self, services: Services) -> None:
        services.scorer(self.scorer)

    async def score(self, group: Group, services: Services) -> Scores:
        readings = await services.scorer(self.scorer).read([passage_of(r) for r in group.rollouts])
        values = [self._value(*found) for found in zip(group.rollouts, readings, strict=True)]
        return scores_of(np.array(values), self.scorer, readings)

    def _value(self, rollout: Rollout, reading: TokenStats) -> float:
        places = np.flatnonzero(chosen(rollout)) + (self.shift == "released")
        if len(places) == 0 or (self.answered and answer_of(rollout, self.extract) is None):
            return math.nan
        return float(certainty(reading.sum_logprobs[places], reading.vocabulary).mean())


def certainty(sum_logprobs: Float[np.ndarray, " T"], vocabulary: int) -> Float[np.ndarray, " T"]:
    """KL(uniform || p_t) of each place from Σ_j log p_t(j), nats."""
    return -sum_logprobs / vocabulary - math.log(vocabulary)
