"""Preference losses: pairs of rollouts of one task, the better one to become likelier than the worse. Means over pairs.

ρ(y) = log π(y) − log π₀(y), summed over the tokens that the policy chose, without a division by length; π₀ is the
reference model, or the weights that sampled the rollout. Truncated rollouts: like others.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.losses.sequence_losses.base import LossTerm
from learner.losses.sequence_sums import SequenceStats

Against = Literal["reference", "behaviour"]


class PairTerm(LossTerm):
    """Base of terms on pairs."""

    needs_pairs: ClassVar[bool] = True

    against: Against = "reference"
    """What π₀ is: the frozen `learner.reference`, or the weights that sampled (`behaviour`), whose log-probs are stored
    with every rollout and cost nothing."""

    @property
    def needs_reference(self) -> bool:
        return self.against == "reference"


class Dpo(PairTerm):
    """−p · log σ(z) − (1 − p) · log σ(−z) with z = β · (ρ(chosen) − ρ(rejected)).

    DPO (arXiv:2305.18290, equation 7) where the label p is 1. A selector may have softened it: CREAM (arXiv:2410.12735)
    by the agreement of two scorers. With `label = "margin"`, `against = "behaviour"` and scores in [0, 1] it is DNO's
    exact regression of the win rates (arXiv:2404.03715, Algorithm 1), with `label = "pair"` its practical form.
    """

    beta: PositiveFloat = 0.1
    """Per nat; DNO calls it η."""
    label: Literal["pair", "margin"] = "pair"
    """Take p from the pair, or as σ(score of the chosen − score of the rejected)."""

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        pairs = sums.pairs
        z = self.beta * margins(sums, self.against)
        label = pairs.label if self.label == "pair" else pairs.margin.sigmoid()
        return pair_mean(preference_loss(z, label), pairs.weight), _metrics(sums, self.against)


class Ipo(PairTerm):
    """(ρ(chosen) − ρ(rejected) − 1 / (2β))²: a margin to reach and not to pass (IPO, arXiv:2310.12036, equation 17)."""

    beta: PositiveFloat = 0.1
    """β, per nat: the margin to reach is 1 / (2β) nats."""

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        distance = margins(sums, self.against) - 1 / (2 * self.beta)
        return pair_mean(distance.square(), sums.pairs.weight), _metrics(sums, self.against)


def margins(sums: SequenceStats, against: Against) -> Float[Tensor, " P"]:
    """ρ(chosen) − ρ(rejected), nats."""
    ratios = sums.log_ratios(against)
    return ratios[sums.pairs.chosen] - ratios[sums.pairs.rejected]


def preference_loss(z: Float[Tensor, " P"], label: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Binary cross entropy of σ(z) against the probability `label` that the chosen one is the better."""
    return -label * logsigmoid(z) - (1 - label) * logsigmoid(-z)


def pair_mean(values: Float[Tensor, " P"], weight: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    """Over the step's pairs, each times its weight; 0 without any pair."""
    return (values * weight).sum() / max(len(values), 1)


@torch.no_grad()
def _metrics(sums: SequenceStats, against: Against) -> dict[str, float]:
    if len(sums.pairs) == 0:
        return {}
    ratios = sums.log_ratios(against)
    chosen, rejected = ratios[sums.pairs.chosen], ratios[sums.pairs.rejected]
    return {
        "pairs/chosen_log_ratio_nats": float(chosen.mean()),
        "pairs/rejected_log_ratio_nats": float(rejected.mean()),
        "pairs/accuracy": float((chosen > rejected).double().mean()),
    }
