"""A clipped surrogate of whole rollouts on stored games, with the reward as the advantage (SPC, arXiv:2504.19162)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from learner.losses.sequence_losses.base import LossTerm
from learner.losses.sequence_losses.preference import Against
from learner.losses.sequence_sums import SequenceStats


class SequenceClip(LossTerm):
    """−min(A ρ, A clip(ρ, 1 − ε, 1 + ε)), mean over rollouts; ρ = exp(mean log π − mean log π₀) over its tokens.

    The offline objective of SPC (arXiv:2504.19162, released code): A is the reward itself, ±1, and π₀ the model at the
    beginning of the round (`learner.reference`). There 0.15 times the mean NLL of the first round's demonstrations is
    added, which `[learner.demonstrations]` with `coef = 0.15` does; its KL coefficient of 0.1 is passed and not used.
    """

    against: Against = "reference"
    """What π₀ is: the frozen `learner.reference`, or the weights that sampled (`behaviour`)."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """ε below 1."""
    clip_high: NonNegativeFloat = 0.2
    """ε above 1."""

    @property
    def needs_reference(self) -> bool:
        return self.against == "reference"

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        ratio = (sums.log_ratios(self.against) / sums.num_tokens.clamp(min=1)).exp()
        losses = clipped_surrogate(ratio, sums.rewards, self.clip_low, self.clip_high)
        clipped = (ratio.detach() - 1 > self.clip_high) | (1 - ratio.detach() > self.clip_low)
        metrics = {"loss/sequence_clip_frac": float(clipped.double().mean())} if len(ratio) else {}
        return losses.sum() / max(1, len(ratio)), metrics


def clipped_surrogate(
    ratio: Float[Tensor, " N"], advantage: Float[Tensor, " N"], low: float = 0.2, high: float = 0.2
) -> Float[Tensor, " N"]:
    """−min(A ρ, A clip(ρ, 1 − low, 1 + high)) of each rollout."""
    return -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - low, 1 + high))
