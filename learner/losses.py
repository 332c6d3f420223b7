"""Losses: pure functions of log-probs, sums over tokens. The caller divides by the step's count.

Everything is [B, L] over packed rows; position t holds what is said about token t, the log-prob under the current
weights included. Masked positions may hold anything finite and reach neither a loss nor a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from cluster.config import LossSection
from cluster.plugins import Plugin
from cluster.types import Micro


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a loss may look at, beside the log-probs."""

    loss_mask: Bool[Tensor, "B L"]
    weight: Float[Tensor, "B L"]
    """1 on trained tokens (`aggregate = "token"`) or 1 / trained tokens of its rollout (`"sequence"`); 0 elsewhere."""
    behaviour_logprobs: Float[Tensor, "B L"]
    advantages: Float[Tensor, "B L"]
    reference_logprobs: Float[Tensor, "B L"] | None = None


def tokens_of(
    micro: Micro,
    aggregate: Literal["token", "sequence"],
    device: torch.device | str = "cpu",
    reference_logprobs: Tensor | None = None,
) -> Tokens:
    """The micro-batch's tensors. A rollout lies in one row, so its length is known here."""
    weight = micro.loss_mask.astype(np.float32)
    if aggregate == "sequence":
        lengths = np.bincount(micro.rollout[micro.loss_mask], minlength=1)
        weight[micro.loss_mask] /= lengths[micro.rollout[micro.loss_mask]]
    mask, weight, behaviour, advantages = (
        torch.tensor(a, device=device) for a in (micro.loss_mask, weight, micro.logprobs, micro.advantages)
    )
    return Tokens(mask, weight, behaviour, advantages, reference_logprobs)


def clipped_policy_loss(
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Clipped surrogate with separate bounds (DAPO, arXiv:2503.14476, section 3.1).

    With `dual_clip` c > 1 a token of negative advantage costs at most c·|A| (arXiv:1912.09729): without it a large
    ratio there is unbounded.
    """
    ratio = importance_ratio(logprobs, behaviour_logprobs, loss_mask)
    advantages = torch.where(loss_mask, advantages, 0.0)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = torch.maximum(-ratio * advantages, -clipped * advantages)
    if dual_clip is not None:
        per_token = torch.where(advantages < 0, torch.minimum(per_token, -dual_clip * advantages), per_token)
    bound = (ratio > 1 + clip_high) & (advantages > 0) | (ratio < 1 - clip_low) & (advantages < 0)
    return (per_token * weight).sum(), {"loss/clipped_frac": (bound & loss_mask).sum()}


def truncated_importance_loss(
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    *,
    cap: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """REINFORCE on off-policy tokens: min(ratio, cap), without gradient, times the log-prob (IMPALA, CISPO).

    Unlike a clipped surrogate no token loses its gradient.
    """
    ratio = importance_ratio(logprobs.detach(), behaviour_logprobs, loss_mask)
    advantages = torch.where(loss_mask, advantages, 0.0)
    per_token = -ratio.clamp(max=cap) * advantages * torch.where(loss_mask, logprobs, 0.0)
    return (per_token * weight).sum(), {"loss/clipped_frac": ((ratio > cap) & loss_mask).sum()}


def importance_ratio(
    logprobs: Float[Tensor, "B L"], behaviour_logprobs: Float[Tensor, "B L"], loss_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """π(token) / behaviour(token); 1 where masked."""
    return torch.where(loss_mask, logprobs - behaviour_logprobs, 0.0).exp()


def kl_to_reference(
    logprobs: Float[Tensor, "B L"],
    reference_logprobs: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    estimator: Literal["k1", "k2", "k3"],
) -> Float[Tensor, "B L"]:
    """Per-token estimates of KL(policy ‖ reference), nats (http://joschu.net/blog/kl-approx.html); 0 where masked.

    As a loss only k2 has the gradient of this KL; k3's is that of KL(reference ‖ policy), k1's is zero on average.
    """
    log_ratio = torch.where(loss_mask, logprobs - reference_logprobs, 0.0)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


class PolicyLoss(Plugin):
    """Base of policy losses: one method, `(logprobs, tokens) → (sum, {name: sum over trained tokens})`."""

    def loss(self, logprobs: Float[Tensor, "B L"], tokens: Tokens) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        raise NotImplementedError


class Clipped(PolicyLoss):
    """PPO's surrogate with separate bounds."""

    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.2, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)
    """A token of negative advantage costs at most this many times its advantage."""

    def loss(self, logprobs: Tensor, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        return clipped_policy_loss(
            logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight,
            clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip,
        )  # fmt: skip


class TruncatedImportance(PolicyLoss):
    """REINFORCE with truncated importance ratios."""

    cap: PositiveFloat = 2.0

    def loss(self, logprobs: Tensor, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        return truncated_importance_loss(
            logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.loss_mask, tokens.weight, cap=self.cap
        )


LOSSES: dict[str, type[PolicyLoss]] = {"clipped": Clipped, "truncated_is": TruncatedImportance}


def objective(
    policy_loss: PolicyLoss,
    section: LossSection,
    logprobs: Float[Tensor, "B L"],
    entropy: Float[Tensor, "B L"],
    tokens: Tokens,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Policy loss + kl_coef · KL − entropy_coef · entropy, as a sum.

    The metrics are sums over trained tokens too, without gradient; `loss/policy` alone carries the tokens' weights.
    """
    loss, metrics = policy_loss.loss(logprobs, tokens)
    metrics = {"loss/policy": loss, **metrics}
    mask = tokens.loss_mask
    kept_entropy = torch.where(mask, entropy, 0.0)
    metrics["loss/entropy_nats"] = kept_entropy.sum()
    if section.entropy_coef:
        loss = loss - section.entropy_coef * (kept_entropy * tokens.weight).sum()
    if tokens.reference_logprobs is not None:
        kl = kl_to_reference(logprobs, tokens.reference_logprobs, mask, section.kl_estimator)
        metrics["loss/kl_nats"] = kl.sum()
        loss = loss + section.kl_coef * (kl * tokens.weight).sum()
    with torch.no_grad():
        ratio = importance_ratio(logprobs, tokens.behaviour_logprobs, mask)
        metrics["loss/ratio_mean"] = (ratio * mask).sum()
        metrics["loss/ratio_square"] = (ratio.square() * mask).sum()
        metrics["policy/behaviour_kl_nats"] = -torch.where(mask, logprobs - tokens.behaviour_logprobs, 0.0).sum()
    return loss, {name: value.detach() for name, value in metrics.items()}
