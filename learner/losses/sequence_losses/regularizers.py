"""Terms that go with others: exploration (SELM) and token-level credit (T-REG) with pairs, likelihood with any."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from pydantic import PositiveFloat
from torch import Tensor

from learner.losses.sequence_losses.base import LossTerm
from learner.losses.sequence_losses.preference import PairTerm, margins, pair_mean
from learner.losses.sequence_sums import SequenceStats


class Selm(PairTerm):
    """β · ρ(third rollout): optimism, which takes probability from what the reference would say anyway.

    SELM (arXiv:2405.19332, released code) adds α of it to DPO; α is the term's `coef`, 1e-3 or 1e-4 there with β 0.01.
    There the third is the reference's greedy answer; here it is what the selector `likeliest` takes: nobody decodes
    greedily while training. It is unbounded below: keep α · β at most 1e-4 and watch `selm/third_log_ratio_nats`.
    Pairs without a third add nothing.
    """

    beta: PositiveFloat = 0.01
    """That of the preference loss."""
    even_if_chosen: bool = True
    """Press also a third that is the chosen one, as the release does."""

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        pairs, ratios = sums.pairs, sums.log_ratios(self.against)
        counts = pairs.third >= 0
        if not self.even_if_chosen:
            counts &= pairs.third != pairs.chosen
        third = torch.where(counts, ratios[pairs.third.clamp(min=0)], 0.0) if len(ratios) else ratios.new_zeros(0)
        metrics = {"selm/third_frac": float(counts.double().mean())} if len(pairs) else {}
        if counts.any():
            metrics["selm/third_log_ratio_nats"] = float(third.detach()[counts].mean())
        return pair_mean(self.beta * third, pairs.weight), metrics


class TReg(PairTerm):
    """w · (L(chosen) + L(rejected)) with L(y) = −β Σ_t r̂_t · log π(y_t) and w = σ(r(rejected) − r(chosen)), r = β · ρ.

    T-REG (arXiv:2412.02685, by summaries of it): token rewards r̂_t in [−½, ½] say where in a response its credit
    belongs; add 0.1 to 0.5 of this (α, the term's `coef`) to DPO. They are the token scores of the reward
    `token_contrast`, which the selector `token_weights` takes. That w carries no gradient is our
    reading: it is introduced as the weight of DPO's gradient. It keeps tokens of negative r̂ from being pressed for
    ever. Pairs with an unknown r̂ add nothing and are counted.
    """

    beta: PositiveFloat = 0.1
    """That of the preference loss."""

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        pairs = sums.pairs
        regularisers = -self.beta * sums.weighted
        known: Bool[Tensor, " P"] = sums.has_weights[pairs.chosen] & sums.has_weights[pairs.rejected]
        weight = (-self.beta * margins(sums, self.against)).sigmoid().detach()
        both = regularisers[pairs.chosen] + regularisers[pairs.rejected]
        metrics = {"t_reg/known_frac": float(known.double().mean())} if len(pairs) else {}
        return pair_mean(torch.where(known, weight * both, 0.0), pairs.weight), metrics


class Nll(LossTerm):
    """−Σ log π(token) / tokens over all trained rollouts, nats: fine-tuning on what a selector kept (best of N).

    With `best` this is ReST's step (arXiv:2308.08998); beside `dpo` with pairs alone it also raises the rejected ones.
    """

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        return -sums.logprobs.sum() / sums.num_tokens.sum().clamp(min=1), {}


class WeightedNll(LossTerm):
    """−Σ w_t log π(token) / tokens over all trained rollouts, nats, with the token weights that a selector gives.

    With `srum` this is SRUM's loss on its own text (arXiv:2510.12784), in the place of its squared error. Rollouts with
    an unknown weight add nothing and are counted.
    """

    def loss(self, sums: SequenceStats) -> tuple[Tensor, dict[str, float]]:
        known = sums.has_weights
        total = torch.where(known, -sums.weighted, 0.0).sum()
        metrics = {"weighted_nll/known_frac": float(known.double().mean())} if len(known) else {}
        return total / sums.num_tokens.sum().clamp(min=1), metrics
