"""The policy's own last token as its judge (LaSeR, arXiv:2510.14943, released code)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from learner.losses.sequence_losses.base import LossTerm
from learner.losses.sequence_sums import SequenceStats

MIX_DELAY = 200
"""Steps of the loss before self-rewards are mixed into advantages."""


class LaSeR(LossTerm):
    """Mean of w · (r − v)² over rollouts that are not truncated: r = β · (ℓ − c), v whether the verifier says right.

    ℓ is the log-prob of `token`, one the policy has no use for, right behind the end of the rollout; c is a constant
    that stands for the reference's. w balances right and wrong: n / (2 · number of its kind). The paper's weight α of
    the term is 0.1 (`coef`). After `mix_after_steps` the self-reward, clamped to [0, 1], 0 where truncated and
    standardised in its group, takes `mix` of the advantage; not in groups where it hardly varies. Sample at
    temperature 1. At test time a response is called right where r > ½.
    """

    token: NonNegativeInt
    """Its id; 151652 in the paper's Qwen2.5 models. No rollout should ever hold it."""
    beta: PositiveFloat = 0.1
    """β: reward per nat of log-prob."""
    reference_logprob: float = -23.0
    """c in nats, as measured for the model once; from 0 on the reference model's own is used."""
    correct: float = 1.0
    """Rewards from here on are right."""
    balance: bool = True
    """Whether right and wrong rollouts count the same, however many there are."""
    from_step: NonNegativeInt = 0
    """The steps before are warm-up and have no such loss; 200 in the paper for a base model."""
    mix: float = Field(default=0.1, ge=0, le=1)
    """Share of the advantage that the self-reward takes once it is mixed in."""
    mix_after_steps: NonNegativeInt | None = None
    """From this step on self-rewards are mixed in; by default 200 steps after `from_step`, as in the paper."""
    min_std: PositiveFloat = 0.1
    """A group whose self-rewards deviate by less keeps its advantages."""

    @property
    def needs_reference(self) -> bool:
        return self.reference_logprob >= 0

    @property
    def appended_token(self) -> int:
        return self.token

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        rewards, right = self._rewards(sums), sums.rewards >= self.correct
        counts = ~sums.truncated
        loss = verification_loss(rewards, right, counts, balance=self.balance)
        verdicts = (rewards.detach() > 0.5) == right
        metrics = {
            f"laser/accuracy_{name}": float(verdicts[kind & counts].double().mean())
            for name, kind in (("right", right), ("wrong", ~right))
            if (kind & counts).any()
        }
        return (loss if sums.step >= self.from_step else 0 * loss), metrics

    def advantages(self, sums: SequenceStats) -> tuple[Tensor, Tensor] | None:
        mix_from = self.from_step + MIX_DELAY if self.mix_after_steps is None else self.mix_after_steps
        if sums.step < mix_from or self.mix == 0:
            return None
        scores = torch.where(sums.truncated, 0.0, self._rewards(sums).detach().clamp(0, 1))
        own = standardised_in_group(scores, sums.group, self.min_std)
        varies = own.isfinite()
        return 1 - self.mix * varies.to(own), torch.where(varies, self.mix * own, 0.0)

    def _rewards(self, sums: SequenceStats) -> Float[Tensor, " N"]:
        base = sums.reference_appended if self.needs_reference else self.reference_logprob
        assert base is not None, "no reference model was loaded"
        return self.beta * (sums.appended - base)


def verification_loss(
    rewards: Float[Tensor, " N"], right: Bool[Tensor, " N"], counts: Bool[Tensor, " N"], *, balance: bool
) -> Float[Tensor, ""]:
    """Mean squared distance of the self-rewards from 1 (right) and 0 over those that count; 0 if none does."""
    rewards, right = rewards[counts], right[counts]
    weight = torch.ones_like(rewards)
    if balance:
        num_right = right.sum()
        of_kind = torch.where(right, num_right, len(right) - num_right)
        weight = len(right) / (2 * of_kind)
    return (weight * (rewards - right.to(rewards)).square()).sum() / max(len(rewards), 1)


def standardised_in_group(values: Float[Tensor, " N"], group: Int[Tensor, " N"], min_std: float) -> Float[Tensor, " N"]:
    """(value − group's mean) / its sample deviation; NaN in groups where that is at most `min_std`."""
    result = torch.full_like(values, float("nan"))
    for number in group.unique():
        members = group == number
        own = values[members]
        if len(own) > 1 and own.std() > min_std:
            result[members] = (own - own.mean()) / own.std()
    return result
