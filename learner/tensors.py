"""What a loss may look at: the tensors of one micro-batch, and sums over the rollouts in it.

Everything is [B, L] over packed rows; position t holds what is said about token t. A rollout lies in one row, so what
is computed per rollout does not depend on how rollouts were packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.types import MicroBatch

Aggregate = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a loss may look at, beside the log-probs."""

    loss_mask: Bool[Tensor, "B L"]
    weight: Float[Tensor, "B L"]
    """1 / trained tokens of its rollout for `aggregate = "sequence"`, else 1; 0 on tokens that are not trained."""
    behaviour_logprobs: Float[Tensor, "B L"]
    advantages: Float[Tensor, "B L"]
    rollout: Int[Tensor, "B L"]
    """Which rollout of the micro-batch a token belongs to, counted from 0; padding has a number of its own."""
    staleness: Int[Tensor, "B L"]
    """Optimizer steps between the weights that sampled a token and the current ones."""
    reference_logprobs: Float[Tensor, "B L"] | None = None
    proximal_logprobs: Float[Tensor, "B L"] | None = None
    """Log-probs under the weights before the step's first update; None in a step of one update: the policy's own."""


MAX_LOG_RATIO = 20.0
"""Nats. exp(20) is 5e8: no loss has a use for a larger ratio, and exp(89) is infinite in fp32."""


def tokens_of(
    micro: MicroBatch,
    aggregate: Aggregate,
    device: torch.device | str = "cpu",
    reference_logprobs: Tensor | None = None,
    proximal_logprobs: Tensor | None = None,
) -> TokenBatch:
    """The micro-batch's tensors."""
    rollout = np.unique(micro.rollout, return_inverse=True)[1].reshape(micro.rollout.shape)
    weight = micro.loss_mask.astype(np.float32)
    if aggregate == "sequence":
        lengths = np.bincount(rollout[micro.loss_mask], minlength=1)
        weight[micro.loss_mask] /= lengths[rollout[micro.loss_mask]]
    return TokenBatch(
        loss_mask=torch.tensor(micro.loss_mask, device=device),
        weight=torch.tensor(weight, device=device),
        behaviour_logprobs=torch.tensor(micro.logprobs, device=device),
        advantages=torch.tensor(micro.advantages, device=device),
        rollout=torch.tensor(rollout, device=device),
        staleness=torch.tensor(micro.staleness, device=device),
        reference_logprobs=reference_logprobs,
        proximal_logprobs=proximal_logprobs,
    )


def log_importance(
    logprobs: Float[Tensor, "B L"], behaviour_logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """log π(token) − log behaviour(token), nats, within ±`MAX_LOG_RATIO`; 0 where masked.

    A token beyond the bound has no gradient: its ratio would overflow, or is 0 to six digits.
    """
    return torch.where(mask, logprobs - behaviour_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sum_by_rollout(values: Float[Tensor, "B L"], rollout: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """At each token the sum over its rollout. What must not count is 0 in `values`."""
    # One slot a token is more than enough, and needs no look at the numbers (on a GPU: no wait for it).
    sums = values.new_zeros(values.numel()).index_add(0, rollout.flatten(), values.flatten())
    return sums[rollout]


def mean_by_rollout(
    values: Float[Tensor, "B L"], rollout: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """At each token the mean over its rollout's tokens in `mask`; 0 for a rollout without any."""
    count = sum_by_rollout(mask.to(values.dtype), rollout)
    return sum_by_rollout(torch.where(mask, values, 0.0), rollout) / count.clamp(min=1)


def kl_to_reference(
    logprobs: Float[Tensor, "B L"],
    reference_logprobs: Float[Tensor, "B L"],
    loss_mask: Bool[Tensor, "B L"],
    estimator: Literal["k1", "k2", "k3"],
) -> Float[Tensor, "B L"]:
    """Per-token estimates of KL(policy ‖ reference), nats (http://joschu.net/blog/kl-approx.html); 0 where masked.

    With r = reference / policy: k1 = −log r, k2 = (log r)² / 2, k3 = r − 1 − log r. On tokens of the policy itself k1
    and k3 are unbiased, k2 is close where the two are; k2 and k3 are never negative. As a loss only k2 has the
    gradient of this KL; k3's is that of KL(reference ‖ policy), k1's is zero on average.

    Tokens of truncated rollouts count like others: each has its own conditional divergence. Log-ratios are clamped as
    importance ratios are (`learner.tensors.MAX_LOG_RATIO`), so that k3 cannot overflow.
    """
    log_ratio = log_importance(logprobs, reference_logprobs, loss_mask)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio
