"""Per-rollout sums of a whole step, and how a loss of them reaches the tokens: two passes over the micro-batches.

    pass 1, no gradient   Σ log-probs of every rollout, of all ranks ─► loss terms ─► their derivative by each sum
    pass 2                the micro's own loss + Σ_t derivative[rollout of t] · log-prob(t)

A loss that sees log-probs only through such sums has exactly the gradient of pass 2, wherever the rollouts of a pair
lie: no two of them need share a row, a micro-batch or a rank, and a rollout in many pairs runs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.types import Batch, MicroBatch, Pair
from learner.pack import TokenBatch, at_temperature_one
from learner.types import Engine


@dataclass(frozen=True, slots=True)
class Pairs:
    """The step's P pairs; the first three count rollouts of the step."""

    chosen: Int[Tensor, " P"]
    rejected: Int[Tensor, " P"]
    third: Int[Tensor, " P"]
    """−1 where there is none."""
    label: Float[Tensor, " P"]
    margin: Float[Tensor, " P"]
    weight: Float[Tensor, " P"]

    def __len__(self) -> int:
        return len(self.chosen)

    @staticmethod
    def of(pairs: Sequence[Pair]) -> Pairs:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        return Pairs(
            column([p.chosen for p in pairs]).long(),
            column([p.rejected for p in pairs]).long(),
            column([-1 if p.third is None else p.third for p in pairs]).long(),
            column([p.label for p in pairs]),
            column([p.margin for p in pairs]),
            column([p.weight for p in pairs]),
        )


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """What a loss term may look at: numbers of the N rollouts that a mini-batch trains on, the same on every rank.

    Log-probs are in nats, float64, at temperature 1, as the papers of preference and SFT losses have them; `behaviour`
    and `sampled` are at the temperature that the rollouts were sampled at.
    """

    logprobs: Float[Tensor, " N"]
    """Sum over the trained tokens; a gradient reaches the policy."""
    sampled: Float[Tensor, " N"]
    """As `logprobs`, at the sampling temperature; a gradient reaches the policy."""
    weighted: Float[Tensor, " N"]
    """Sum of token weight × log-prob; a gradient reaches the policy."""
    appended: Float[Tensor, " N"]
    """Log-prob of the appended token, 0 if none was; a gradient reaches the policy."""
    behaviour: Float[Tensor, " N"]
    """As `sampled`, under the weights that sampled."""
    reference: Float[Tensor, " N"] | None
    """As `logprobs`, under the reference model; None where no term needs it."""
    reference_appended: Float[Tensor, " N"] | None
    num_tokens: Float[Tensor, " N"]
    rewards: Float[Tensor, " N"]
    truncated: Bool[Tensor, " N"]
    group: Int[Tensor, " N"]
    has_weights: Bool[Tensor, " N"]
    """Whether the weights of all its tokens are known."""
    pairs: Pairs
    step: int
    brought: Float[Tensor, " M"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """Log-probs of the replies of the M sequences that the term brings, at temperature 1; a gradient reaches the
    policy. 0 where a sequence could not be made."""
    has_brought: Bool[Tensor, " M"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Whether the sequence could be made."""

    def log_ratios(self, against: str) -> Float[Tensor, " N"]:
        """log π(y) − log π₀(y): π₀ is the `reference` model, both at temperature 1, or the weights that sampled
        (`behaviour`), both at the sampling temperature, the only one that their stored log-probs are known at."""
        if against == "behaviour":
            return self.sampled - self.behaviour
        assert self.reference is not None, "no reference model was loaded"
        return self.logprobs - self.reference


def sums_of(batch: Batch, engine: Engine, references: Sequence[Tensor | None]) -> SequenceStats:
    """Pass 1. `references` are the reference model's log-probs at temperature 1. Collective."""
    count, trained = batch.num_rollouts, batch.trained
    names = (
        "logprobs",
        "sampled",
        "weighted",
        "appended",
        "behaviour",
        "num_tokens",
        "reference",
        "reference_appended",
    )
    found = {name: torch.zeros(count, dtype=torch.float64) for name in names}

    def add(name: str, micro: MicroBatch, values: Tensor) -> None:
        rollout = torch.tensor(micro.rollout).flatten()
        real = rollout >= 0
        found[name].index_add_(0, rollout[real], values.detach().double().cpu().flatten()[real])

    for micro, reference in zip(batch.micros, references, strict=True):
        mask = torch.tensor(micro.loss_mask)
        with torch.no_grad():
            sampled = engine.logprobs(micro)[0].cpu()
            policy = engine.logprobs(at_temperature_one(micro))[0].cpu() if batch.tempered else sampled
            known = reference.cpu() if reference is not None else torch.zeros_like(policy)
        add("logprobs", micro, policy * mask)
        add("sampled", micro, sampled * mask)
        add("reference", micro, known * mask)
        add("behaviour", micro, torch.tensor(micro.logprobs) * mask)
        add("num_tokens", micro, mask)
        if micro.token_weights is not None:
            add("weighted", micro, policy * torch.tensor(micro.token_weights))
        if micro.appended is not None:
            extra = torch.tensor(micro.appended)
            add("appended", micro, policy * extra)
            add("reference_appended", micro, known * extra)
    flat = {f"{name}/{i}": float(v) for name, values in found.items() for i, v in enumerate(values)}
    totals = engine.total(flat)
    whole = {n: torch.tensor([totals[f"{n}/{i}"] for i in range(count)], dtype=torch.float64) for n in names}
    if any(r is None for r in references):
        del whole["reference"], whole["reference_appended"]
    for name in ("logprobs", "sampled", "weighted", "appended"):
        whole[name].requires_grad_()
    return SequenceStats(
        **{"reference": None, "reference_appended": None, **whole},  # pyright: ignore[reportArgumentType]
        rewards=torch.tensor(batch.rewards),
        truncated=torch.tensor(batch.truncated),
        group=torch.tensor(trained.group),
        has_weights=torch.tensor(trained.weighted),
        pairs=Pairs.of(trained.pairs),
        step=batch.step,
    )


@dataclass(frozen=True, slots=True)
class Credits:
    """What pass 2 needs: derivatives of the terms by each rollout's sums, and what becomes of its advantages."""

    logprobs: Float[Tensor, " N"]
    sampled: Float[Tensor, " N"]
    weighted: Float[Tensor, " N"]
    appended: Float[Tensor, " N"]
    factor: Float[Tensor, " N"]
    """Advantages are multiplied by it,"""
    addend: Float[Tensor, " N"]
    """and this is added."""
    metrics: dict[str, float] = field(default_factory=dict)

    def surrogate(
        self, micro: MicroBatch, at_one: Float[Tensor, "B L"] | None, sampled: Float[Tensor, "B L"] | None
    ) -> Float[Tensor, ""]:
        """Its gradient is that of all terms through this micro's log-probs at temperature 1 and at the sampling one,
        as far as they are given; its value means nothing."""
        total = torch.zeros(())
        if len(self.logprobs) == 0:
            return total
        rollout, mask = torch.tensor(micro.rollout).clamp(min=0), torch.tensor(micro.loss_mask)
        if sampled is not None:
            total = ((self.sampled[rollout] * mask).to(sampled) * sampled).sum()
        if at_one is not None:
            per_token = self.logprobs[rollout] * mask
            if micro.token_weights is not None:
                per_token = per_token + self.weighted[rollout] * torch.tensor(micro.token_weights)
            if micro.appended is not None:
                per_token = per_token + self.appended[rollout] * torch.tensor(micro.appended)
            total = (per_token.to(at_one) * at_one).sum() + total.to(at_one)
        return total

    def applied(self, micro: MicroBatch, tokens: TokenBatch) -> TokenBatch:
        """The micro's tokens with the advantages that the terms make of them."""
        if len(self.factor) == 0:
            return tokens
        rollout = torch.tensor(micro.rollout).clamp(min=0)
        factor, addend = self.factor[rollout].to(tokens.advantages), self.addend[rollout].to(tokens.advantages)
        return replace(tokens, advantages=tokens.advantages * factor + addend)
