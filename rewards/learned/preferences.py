"""Learning a reward from preferences: Bradley-Terry, and what Secrets of RLHF II adds to it (arXiv:2401.06080). Pure.

A pair has a first and a second text; `better` in [0, 1] is the probability that the first is the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, normalize

Flip = Literal["never", "negative", "certain"]
"""Which labels are turned round: none; those that the ensemble contradicts (μ < 0); those that it contradicts by more
than it disagrees with itself (μ < −σ), which is our caution: a biased ensemble entrenches its bias."""
Smooth = Literal["all", "negative", "strong"]
"""Which labels are smoothed: all; those with μ < 0; the strongest tenth of the batch, which are learnt by heart."""
STRONG_FRAC = 0.1


def preference_loss(
    first: Float[Tensor, " N"],
    second: Float[Tensor, " N"],
    better: Float[Tensor, " N"],
    margin: Float[Tensor, " N"] | float = 0.0,
    centring: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of −q log σ(Δ) − (1 − q) log σ(−Δ) + c · (r₁ + r₂)², Δ = r₁ − r₂ − margin, in nats.

    The adaptive margin stands inside the sigmoid; the paper typesets it outside, where it would have no gradient.
    """
    apart = first - second - margin
    loss = -(better * logsigmoid(apart) + (1 - better) * logsigmoid(-apart))
    return (loss + centring * (first + second) ** 2).mean()


def strengths(apart: Float[Tensor, "N M"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Mean and population deviation, over M reward models, of how much they prefer the chosen text (section 2.1)."""
    return apart.mean(1), apart.std(1, correction=0)


def corrected_labels(
    better: Float[Tensor, " N"],
    mean: Float[Tensor, " N"],
    std: Float[Tensor, " N"],
    *,
    flip: Flip = "never",
    smoothing: float = 0.0,
    smooth: Smooth = "all",
) -> Float[Tensor, " N"]:
    """Labels after flipping, then smoothing: q → (1 − a) q + a (1 − q) (section 2.2).

    `mean` and `std` are those of `strengths`; a tie has no chosen text and is never turned round.
    """
    if flip != "never":
        wrong = (mean < 0) if flip == "negative" else (mean < -std)
        better = torch.where(wrong, 1 - better, better)
    if smoothing:
        strong = mean >= torch.quantile(mean, 1 - STRONG_FRAC)
        chosen = {"all": torch.ones_like(strong), "negative": mean < 0, "strong": strong}[smooth]
        better = torch.where(chosen, (1 - smoothing) * better + smoothing * (1 - better), better)
    return better


def contrastive_loss(one: Float[Tensor, "N D"], other: Float[Tensor, "N D"], temperature: float) -> Float[Tensor, ""]:
    """SimCSE: mean of −log softmax_j(cos(one_i, other_j) / τ) at j = i; the two differ in dropout (section 3.2)."""
    similarity = normalize(one, dim=1) @ normalize(other, dim=1).T / temperature
    return cross_entropy(similarity, torch.arange(len(one)))


def spread(scores: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """J = (2 / k²) Σ_{i<j} σ(|r_i − r_j|) of a group: how well a reward model tells its texts apart (MetaRM, section 4;
    arXiv:2405.00438)."""
    first, second = torch.triu_indices(len(scores), len(scores), offset=1)
    return 2 / len(scores) ** 2 * torch.sigmoid((scores[first] - scores[second]).abs()).sum()


@contextmanager
def ascended(parameters: Iterable[Tensor], objective: Callable[[], Tensor], lr: float) -> Iterator[None]:
    """For its time the parameters are θ + η ∇objective(θ), a first-order inner step; then they are θ again.

    MetaRM takes the gradient of the preference loss inside and applies it outside.
    """
    learnt = [p for p in parameters if p.requires_grad]
    before = [p.detach().clone() for p in learnt]
    gradients = torch.autograd.grad(objective(), learnt, allow_unused=True)
    try:
        with torch.no_grad():
            for parameter, gradient in zip(learnt, gradients, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=lr)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(learnt, before, strict=True):
                parameter.copy_(value)


def verification_loss(logits: Float[Tensor, " N"], right: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of σ(logit) with 1 for a right answer: how Cooper's reward model is pre-trained
    (VerifyRM, arXiv:2508.05613)."""
    return binary_cross_entropy_with_logits(logits, right)
