"""Log-prob of a token and entropy of its position from logits, without a copy of them in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Of fp32 logits at a time: on a CPU what its cache holds."""


def token_statistics(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"], *, entropy_grad: bool
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-prob of `tokens` and entropy, fp32 nats. Only with `entropy_grad` the entropy has a gradient.

    `torch.nn.functional.cross_entropy` would keep a copy of the logits in fp32, and an entropy beside it two more.
    """
    chosen, entropy = _TokenStatistics.apply(logits, tokens, entropy_grad)  # pyright: ignore[reportGeneralTypeIssues]
    return chosen, entropy


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        chosen = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        entropy = torch.empty_like(chosen)
        for rows in _chunks(logits):
            logprobs = logits[rows].float().log_softmax(-1)
            chosen[rows] = logprobs.gather(1, tokens[rows, None])[:, 0]
            entropy[rows] = _entropy(logprobs)
        ctx.save_for_backward(logits, tokens, entropy)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        ctx.entropy_grad = entropy_grad
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """∂ log p_t / ∂ logit_v = 1[v = t] − p_v;  ∂ H / ∂ logit_v = −p_v (log p_v + H)."""
        logits, tokens, entropy = ctx.saved_tensors
        of_chosen, of_entropy = grads
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            weight, place = of_chosen[rows, None], tokens[rows, None]
            if ctx.entropy_grad:
                logprobs = _bounded(logits[rows].float().log_softmax(-1))
                slope = (logprobs + entropy[rows, None]).mul_(of_entropy[rows, None]).add_(weight)
                part = logprobs.exp_().mul_(slope).neg_().scatter_add_(1, place, weight)
                grad[rows] = part
            else:
                part = logits[rows].float().softmax(-1).scatter_add_(1, place, torch.full_like(weight, -1.0))
                torch.mul(part, -weight, out=grad[rows])
        return grad, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES[logits.device.type] // (4 * logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))


def _entropy(logprobs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    probabilities = logprobs.exp()
    # A sum of products as matrices: without a tensor of the products.
    return -torch.bmm(probabilities[:, None, :], _bounded(logprobs)[:, :, None])[:, 0, 0]


def _bounded(logprobs: Tensor) -> Tensor:
    """In place: a token that cannot come (−inf) adds 0 to an entropy, not 0 · inf."""
    return logprobs.clamp_(min=torch.finfo(torch.float32).min)
