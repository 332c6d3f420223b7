"""The updates of one step: the assembled batch in mini-batches, each with an optimizer step, in one or more passes.

    before the first update   reference and proximal log-probs, the critic's targets, of all mini-batches
    each mini-batch           loss terms' derivatives ─► every micro-batch: loss, backward ─► optimizer step

With one update per batch (the default) this is a single gradient of the whole batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cluster.config import LearnerSection, LossSection
from cluster.plugins import build
from cluster.types import Batch, MicroBatch
from learner.advantages.estimators import Advantage
from learner.advantages.gae import Credited, credit
from learner.batch.pack import at_temperature_one, whole_batch
from learner.losses.policy_losses import LOSSES, PolicyLoss, objective
from learner.losses.sequence_losses import Terms, build_terms
from learner.losses.sequence_sums import Credits
from learner.tensors import tokens_of
from learner.types import Engine


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimises: the recipe's section with the policy loss and the loss terms that it names."""

    section: LearnerSection
    policy_loss: PolicyLoss
    terms: Terms

    @staticmethod
    def of(section: LearnerSection) -> Objective:
        """Raises ConfigError for a loss or term that cannot be built."""
        loss = build(LOSSES, section.loss.use, section.loss.options, "learner.loss")
        return Objective(section, loss, build_terms(section))

    @property
    def append(self) -> int | None:
        """A token that a loss term wants behind every rollout."""
        return self.terms.appended_token

    def filtering(self, advantage: Advantage) -> LearnerSection:
        """The section with `drop_zero_variance` decided where the recipe leaves it open.

        A group of equal rewards is useless only if nothing but its advantages would act on it. A KL or entropy term,
        a critic, a loss term that is not about pairs, and a loss that reads the reference model all do.
        """
        section, loss = self.section, self.section.loss
        if section.drop_zero_variance is not None:
            return section
        acts = (
            loss.kl_coef > 0
            or loss.entropy_coef != 0
            or section.value is not None
            or self.policy_loss.need_reference
            or self.terms.act_without_pairs
            or advantage.uses_equal_rewards
        )
        return section.model_copy(update={"drop_zero_variance": not acts})


@dataclass(frozen=True, slots=True)
class _MiniBatch:
    """A mini-batch and what of it is known before the first update, one entry per micro-batch."""

    batch: Batch
    references: list[Tensor | None]
    """At the sampling temperature,"""
    references_at_one: list[Tensor | None]
    """and at temperature 1, for loss terms."""
    proximal: list[Tensor | None]
    credited: Credited | None


def optimize(
    batches: Batch | Sequence[Batch],
    wanted: Objective,
    engine: Engine,
    reference: Any = None,
    *,
    heard: Callable[[MicroBatch, torch.Tensor], None] = lambda micro, logprobs: None,
) -> dict[str, float]:
    """Take the step's optimizer steps, one per mini-batch and pass; returns metrics of all of them. Collective.

    `heard` gets each micro-batch, numbered as in the whole step, with its log-probs before the first update. A step
    without trained tokens passes with a count.
    """
    batches = [batches] if isinstance(batches, Batch) else list(batches)
    passes, section = wanted.section.passes_per_batch, wanted.section
    counts = {
        "learner/tokens": float(sum(b.num_tokens for b in batches)),
        "learner/rollouts": float(sum(b.num_rollouts for b in batches)),
        **_packing(batches),
    }
    parts = _prepared([b for b in batches if b.num_tokens], wanted, engine, reference, heard, several=passes > 1)
    if not parts:
        engine.skip_step()
        return {**counts, "learner/num_empty_steps": 1.0}
    once = len(parts) * passes == 1
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    rows: list[dict[str, float]] = []
    for number in range(passes):
        for i, part in enumerate(parts):
            rows.append(_accumulate(part, wanted, engine, sums, heard if once else None))
            rows[-1] |= engine.optimizer_step(final=number == passes - 1 and i == len(parts) - 1)
    totals = engine.total({name: float(value) for name, value in sums.items()})
    num_tokens = passes * sum(p.batch.num_tokens for p in parts)
    denominator = passes * sum(denominator_of(p.batch, section.loss) for p in parts)
    updates = {"learner/num_updates": float(len(rows))}
    return {**counts, **_means(totals, num_tokens, denominator), **_averaged(rows), **updates}


def _prepared(
    batches: Sequence[Batch],
    wanted: Objective,
    engine: Engine,
    reference: Any,
    heard: Callable[[MicroBatch, Tensor], None],
    *,
    several: bool,
) -> list[_MiniBatch]:
    """What is computed under the weights that the step begins with."""
    section, several = wanted.section, several or len(batches) > 1

    def references_of(batch: Batch, *, at_one: bool) -> list[Tensor | None]:
        micros = map(at_temperature_one, batch.micros) if at_one else batch.micros
        return [reference.logprobs(micro) if reference else None for micro in micros]

    parts = []
    for batch in batches:
        references = references_of(batch, at_one=False)
        tempered = batch.tempered and wanted.terms.need_reference
        at_one = references_of(batch, at_one=True) if tempered else references
        proximal: list[Tensor | None] = [None] * len(batch.micros)
        if several:
            with torch.no_grad():
                proximal = [engine.logprobs(micro)[0] for micro in batch.micros]
        parts.append(_MiniBatch(batch, references, at_one, proximal, None))
    if several:
        whole = whole_batch(batches)
        for micro, logprobs in zip(whole.micros, (p for part in parts for p in part.proximal), strict=True):
            assert logprobs is not None
            heard(micro, logprobs)
    if section.value is None or not parts:
        return parts
    references = [r for part in parts for r in part.references]
    credited = credit(whole_batch(batches), section.value, engine, references)
    return [
        replace(part, credited=own) for part, own in zip(parts, credited.split([p.batch for p in parts]), strict=True)
    ]


def _accumulate(
    part: _MiniBatch,
    wanted: Objective,
    engine: Engine,
    sums: dict[str, Tensor],
    heard: Callable[[MicroBatch, Tensor], None] | None,
) -> dict[str, float]:
    """Add the mini-batch's gradient and its metrics' sums; returns metrics that are none. Collective."""
    section, batch, credited = wanted.section, part.batch, part.credited
    denominator = denominator_of(batch, section.loss)
    credits = wanted.terms.credits(batch, engine, part.references_at_one)
    for i, micro in enumerate(credited.micros if credited else batch.micros):
        logprobs, entropy, values = _forward(engine, micro, credited)
        if heard is not None:
            heard(micro, logprobs)
        tokens = tokens_of(micro, section.loss.aggregate, logprobs.device, part.references[i], part.proximal[i])
        tokens = credits.applied(micro, tokens)
        loss, stats = objective(wanted.policy_loss, section.loss, logprobs, entropy, tokens)
        if credited is not None and values is not None:
            off, told = credited.value_loss(i, values, tokens)
            loss, stats = loss + off, stats | told
        _backward(engine, micro, loss / denominator, credits, logprobs, tempered=batch.tempered)
        for name, value in stats.items():
            sums[name] = sums[name].to(value.device) + value
    return credits.metrics | (credited.metrics if credited else {})


def _backward(
    engine: Engine, micro: MicroBatch, loss: Tensor, credits: Credits, logprobs: Float[Tensor, "B L"], *, tempered: bool
) -> None:
    """Add the gradient of `loss` and of the loss terms, which look at log-probs at temperature 1."""
    if not tempered or not len(credits.logprobs):
        engine.backward(loss + credits.surrogate(micro, logprobs, logprobs))
        return
    engine.backward(loss + credits.surrogate(micro, None, logprobs))
    # A second pass and not a second look at the logits: they are the largest tensor of a step.
    engine.backward(credits.surrogate(micro, engine.logprobs(at_temperature_one(micro))[0], None))


def _forward(engine: Engine, micro: MicroBatch, credited: Credited | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return engine.logprobs_and_values(micro) if credited else (*engine.logprobs(micro), None)


def denominator_of(batch: Batch, section: LossSection) -> float:
    """What the batch's sum of losses is divided by: the same on every rank, whatever the micro-batches."""
    if section.aggregate == "token":
        return batch.num_tokens
    # Dr. GRPO (arXiv:2503.20783, section 3): a constant a rollout, so that length changes no token's weight.
    return batch.num_rollouts * (section.constant_tokens or 1)


def _packing(batches: Sequence[Batch]) -> dict[str, float]:
    """How the rows are packed: padding averaged over the mini-batches, micro-batches counted."""
    padding = [b.metrics["learner/padding_frac"] for b in batches if "learner/padding_frac" in b.metrics]
    counted = {"learner/num_micros": float(sum(b.metrics.get("learner/num_micros", 0.0) for b in batches))}
    return counted | ({"learner/padding_frac": sum(padding) / len(padding)} if padding else {})


def _averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the step's updates; counts that only grow have their last value."""
    names = dict.fromkeys(name for row in rows for name in row)
    result = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        result[name] = values[-1] if name.rsplit("/", 1)[-1].startswith("num_") else sum(values) / len(values)
    return result


def _means(totals: dict[str, float], num_tokens: int, denominator: float) -> dict[str, float]:
    means = {name: value / num_tokens for name, value in totals.items()}
    for name in totals.keys() & {"loss/policy", "loss/value"}:  # these carry the tokens' weights
        means[name] = totals[name] / denominator
    square = means.pop("loss/ratio_square")
    # Share of the tokens that a sum of importance-weighted ones is worth: 1 on policy.
    means["loss/effective_samples_frac"] = means["loss/ratio_mean"] ** 2 / square if square else 0.0
    stale = means["policy/stale_frac"]
    for cause, share in (("mismatch", 1 - stale), ("staleness", stale)):
        for name in (f"policy/{cause}_kl_nats", f"loss/{cause}_bound_frac"):
            value = means.pop(name, None)
            if value is not None and share > 0:  # of no tokens nothing is known
                means[name] = value / share
    return means
