"""Estimators of the KL divergence to a reference policy, from the sampled tokens alone."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from learner.tokens import log_importance


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
    importance ratios are (`learner.tokens.MAX_LOG_RATIO`), so that k3 cannot overflow.
    """
    log_ratio = log_importance(logprobs, reference_logprobs, loss_mask)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio
