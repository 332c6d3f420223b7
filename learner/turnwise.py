"""Advantages that pay for each turn's own distance from the reference (SCoRe, arXiv:2409.12917)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def turn_of_token(mask: Bool[Tensor, "B L"], rollout: Int[Tensor, "B L"]) -> tuple[Tensor, Tensor]:
    """([B, L] run, [B, L] turn): which run of trained tokens a token is in, numbered over all rows, and which of its
    rollout's, from 0; −1 where not trained.

    What the policy said without an interruption is one turn: the environment's tokens between two are not trained.
    """
    before = torch.nn.functional.pad(mask[:, :-1] & (rollout[:, 1:] == rollout[:, :-1]), (1, 0))
    run = (mask & ~before).flatten().long().cumsum(0).reshape(mask.shape) - 1
    run = torch.where(mask, run, -1)
    first = torch.full((mask.numel() + 1,), mask.numel(), device=mask.device)
    first = first.scatter_reduce(0, rollout.flatten(), torch.where(mask, run, mask.numel()).flatten(), "amin")
    return run, torch.where(mask, run - first[rollout], -1)


def mean_by_turn(values: Float[Tensor, "B L"], run: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """At each trained token the mean over its turn; 0 elsewhere."""
    mask = run >= 0
    slots = torch.where(mask, run, run.numel()).flatten()
    size = run.numel() + 1
    sums = values.new_zeros(size).index_add(0, slots, torch.where(mask, values, 0.0).flatten())
    counts = values.new_zeros(size).index_add(0, slots, mask.to(values.dtype).flatten())
    return torch.where(mask, (sums / counts.clamp(min=1))[slots].reshape(run.shape), 0.0)


def penalised(
    advantages: Float[Tensor, "B L"],
    logprobs: Float[Tensor, "B L"],
    reference_logprobs: Float[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    rollout: Int[Tensor, "B L"],
    betas: tuple[float, ...],
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """(A_k − β_k · mean over turn k of log π − log reference, that mean in nats), at each token of turn k.

    Turns beyond the last β take that one. k1 without gradient; the mean makes β independent of length.
    """
    run, turn = turn_of_token(mask, rollout)
    kl = mean_by_turn(torch.where(mask, logprobs.detach() - reference_logprobs, 0.0), run)
    beta = torch.tensor(betas, dtype=kl.dtype, device=kl.device)[turn.clamp(min=0, max=len(betas) - 1)]
    return torch.where(mask, advantages - beta * kl, 0.0), kl
