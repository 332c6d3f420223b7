"""Importance corrections, apart for two causes: engine mismatch and staleness. Pure functions.

A learner knows of each token the behaviour log-prob, its own log-prob under the current weights, and how many steps old
the weights were that sampled it. Where they are the current ones the two differ by *mismatch* alone: another kernel,
another precision. On older tokens they differ by mismatch × staleness, and only the log-probs of a learner with the old
weights, which nobody keeps, would tell the factors apart. So each correction has its own tokens:

    staleness == 0 ──► `learner.loss.mismatch`
    staleness  > 0 ──► `learner.loss.staleness`

    truncate  weight = the ratio, within [low, high]; the loss's own ratio starts from 1 (nothing is counted twice)
    mask      weight = 0 where the ratio is outside [low, high], else 1; the loss keeps its own ratio

Truncated rollouts are corrected like others, over the tokens that there are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.config import CorrectionSection, LossSection
from learner.tensors import TokenBatch, log_importance, mean_by_rollout, sum_by_rollout

Level = Literal["token", "sequence", "geometric"]


def ratio_at(
    log_ratio: Float[Tensor, "B L"], rollout: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], level: Level
) -> Float[Tensor, "B L"]:
    """Importance ratio of each token in `mask`, of its rollout (the product over those tokens), or the geometric mean.

    1 outside `mask`. The product is the unbiased one, and of a spread that grows with length; tokens alone are biased,
    of a small spread (https://fengyao.notion.site/off-policy-rl); the geometric mean judges a rollout whatever its
    length, but is no importance weight: use it to mask.
    """
    kept = torch.where(mask, log_ratio, 0.0)
    if level == "sequence":
        kept = sum_by_rollout(kept, rollout)
    elif level == "geometric":
        kept = mean_by_rollout(kept, rollout, mask)
    return torch.where(mask, kept, 0.0).exp()


def truncated_weight(
    ratio: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], *, low: float, high: float
) -> Float[Tensor, "B L"]:
    """The ratio within [low, high]; 1 outside `mask`.

    Truncated importance sampling: https://fengyao.notion.site/off-policy-rl for engine mismatch, with low = 0.
    """
    return torch.where(mask, ratio.clamp(low, high), 1.0)


def masked_weight(
    ratio: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], *, low: float, high: float
) -> Float[Tensor, "B L"]:
    """0 where the ratio is outside [low, high], else 1; 1 outside `mask`.

    Masked importance sampling: by token as in IcePop (Ring-1T, arXiv:2510.18855), by rollout for the other levels. In
    IcePop what is kept is weighted by its ratio too: `truncated_is` beside the mask does that. What is masked still
    counts in the step's denominator, so masking shrinks a step and never scales up the rest.
    """
    return torch.where(mask & ((ratio < low) | (ratio > high)), 0.0, 1.0)


@torch.no_grad()
def corrected(
    logprobs: Float[Tensor, "B L"], tokens: TokenBatch, section: LossSection
) -> tuple[TokenBatch, dict[str, Tensor]]:
    """The tokens with corrected weights, and what was found: {metric: sum over trained tokens}."""
    log_ratio = log_importance(logprobs, tokens.behaviour_logprobs, tokens.loss_mask)
    stale = tokens.loss_mask & (tokens.staleness > 0)
    fresh = tokens.loss_mask & (tokens.staleness == 0)
    metrics = {"policy/stale_frac": stale.sum()}
    for name, mask, correction in (("mismatch", fresh, section.mismatch), ("staleness", stale, section.staleness)):
        metrics[f"policy/{name}_kl_nats"] = -torch.where(mask, log_ratio, 0.0).sum()
        if correction is not None:
            ratio = ratio_at(log_ratio, tokens.rollout, mask, correction.level)
            tokens = _apply(correction, ratio, mask, logprobs, tokens)
            bound = mask & ((ratio < correction.low) | (ratio > correction.high))
            metrics[f"loss/{name}_bound_frac"] = bound.sum()
    return tokens, metrics


def _apply(
    correction: CorrectionSection, ratio: Tensor, mask: Tensor, logprobs: Tensor, tokens: TokenBatch
) -> TokenBatch:
    bounds = {"low": correction.low, "high": correction.high}
    if correction.how == "mask":
        return replace(tokens, weight=tokens.weight * masked_weight(ratio, mask, **bounds))
    return replace(
        tokens,
        weight=tokens.weight * truncated_weight(ratio, mask, **bounds),
        behaviour_logprobs=torch.where(mask, logprobs, tokens.behaviour_logprobs),
    )
