"""Tokens whose log-prob and advantage move together are what entropy collapses on; some are left out of the loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from learner.tokens import log_importance


def covariances(
    advantages: Float[Tensor, "B L"], logprobs: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """(A − mean A)(log π − mean log π) of each token, nats; means over the masked tokens, 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    centred = [
        torch.where(mask, x - torch.where(mask, x, 0.0).sum() / count, 0.0) for x in (advantages, logprobs.detach())
    ]
    return centred[0] * centred[1]


def left_out(
    advantages: Float[Tensor, "B L"],
    logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    *,
    low: float,
    high: float,
    frac: float,
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "B L"]:
    """Covariance clip (SPEAR, arXiv:2509.22601, by its released code): true on tokens whose loss becomes 0.

    Eligible are tokens with low < covariance < high that the clipped ratio has not stopped already. Of them
    max(1, ⌊frac · masked tokens⌋) are drawn evenly, all if there are fewer; by a generator seeded with the number of
    masked tokens, so that a step can be run again.
    """
    ratio = log_importance(logprobs.detach(), behaviour_logprobs, mask).exp()
    stopped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    found = covariances(advantages, logprobs, mask)
    eligible = (mask & ~stopped & (found > low) & (found < high)).flatten().nonzero().flatten()
    total = int(mask.sum())
    count = min(len(eligible), max(1, int(frac * total)))
    generator = torch.Generator().manual_seed(total)
    drawn = eligible[torch.randperm(len(eligible), generator=generator)[:count].to(eligible.device)]
    result = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    result[drawn] = True
    return result.reshape(mask.shape)
