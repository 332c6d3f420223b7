"""The updates of one step: the assembled batch in mini-batches, each with an optimizer step, in one or more passes.

    before the first update   reference and proximal log-probs of all mini-batches
    each mini-batch           every micro-batch: log-probs ─► loss ─► backward, then the optimizer step

With one update per batch (the default) this is a single gradient of the whole batch. Everything that is not the policy
loss (a critic, losses of whole rollouts) comes in through `learner.step_plugin`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.config import LearnerSection, LossSection
from cluster.metrics import metric_of
from cluster.plugins import build
from cluster.types import Batch, MicroBatch
from learner.advantages.estimators import Advantage
from learner.batch.pack import whole_batch
from learner.losses.policy_losses import LOSSES, PolicyLoss, objective
from learner.losses.sequence_losses import build_terms
from learner.losses.value_loss import ValueLoss
from learner.step_plugin import Outputs, StepPlugin, Update
from learner.tensors import tokens_of
from learner.types import Engine, ReferenceModel


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimises: the policy loss that the recipe names, and plug-ins with losses of their own."""

    section: LearnerSection
    policy_loss: PolicyLoss
    plugins: tuple[StepPlugin, ...]

    @staticmethod
    def of(section: LearnerSection) -> Objective:
        """Build what `section` names. Raises ConfigError for a loss that cannot be built."""
        loss = build(LOSSES, section.loss.use, section.loss.options, "learner.loss")
        plugins: list[StepPlugin] = []
        if section.value is not None:
            plugins.append(ValueLoss(section.value))
        if section.sequence_losses:
            plugins.append(build_terms(section))
        return Objective(section, loss, tuple(plugins))

    @property
    def append(self) -> int | None:
        """A token that a plug-in wants behind every rollout."""
        return next((p.appended_token for p in self.plugins if p.appended_token is not None), None)

    def filtering(self, advantage: Advantage) -> LearnerSection:
        """Return the section with `drop_zero_variance` decided where the recipe leaves it open.

        A group of equal rewards is useless only if nothing but its advantages would act on it. A KL or entropy term,
        a critic, a loss term that is not about pairs, and a loss that reads the reference model all do.
        """
        section, loss = self.section, self.section.loss
        if section.drop_zero_variance is not None:
            return section
        acts = (
            loss.kl_coef > 0
            or loss.entropy_coef != 0
            or self.policy_loss.need_reference
            or any(plugin.uses_equal_rewards for plugin in self.plugins)
            or advantage.uses_equal_rewards
        )
        return section.model_copy(update={"drop_zero_variance": not acts})


def optimize(
    batches: Batch | Sequence[Batch],
    wanted: Objective,
    engine: Engine,
    reference: ReferenceModel | None = None,
    plugins: Sequence[StepPlugin] = (),
) -> dict[str, float]:
    """Take the step's optimizer steps, one per mini-batch and pass; returns metrics of all of them. Collective.

    `plugins` come behind those of the objective. A step without trained tokens passes with a count.
    """
    batches = [batches] if isinstance(batches, Batch) else list(batches)
    plugins, section = (*wanted.plugins, *plugins), wanted.section
    passes = section.passes_per_batch
    counts = {
        "learner/tokens": float(sum(b.num_tokens for b in batches)),
        "learner/rollouts": float(sum(b.num_rollouts for b in batches)),
        **_packing(batches),
    }
    batches = [batch for batch in batches if batch.num_tokens]
    if not batches:
        engine.skip_step()
        return {**counts, "learner/num_empty_steps": 1.0}
    once = len(batches) * passes == 1
    updates = _updates(batches, section.loss, engine, reference, once=once)
    if not once:
        _tell_logprobs(updates, plugins)
    for plugin in plugins:
        plugin.before_updates(updates, engine, reference)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    rows: list[dict[str, float]] = []
    for number in range(passes):
        for update in updates:
            row: dict[str, float] = {}
            for plugin in plugins:
                row |= plugin.before_update(update, engine, reference)
            for i in range(len(update.batch.micros)):
                _accumulate(update, i, wanted, engine, plugins, sums, tell_logprobs=once)
            row |= engine.optimizer_step(final=number == passes - 1 and update is updates[-1])
            rows.append(row)
    totals = engine.total({name: float(value) for name, value in sums.items()})
    num_tokens = passes * sum(update.batch.num_tokens for update in updates)
    denominator = passes * sum(update.denominator for update in updates)
    num_updates = {"learner/num_updates": float(len(rows))}
    return {**counts, **_means(totals, num_tokens, denominator), **_averaged(rows), **num_updates}


def _updates(
    batches: Sequence[Batch], section: LossSection, engine: Engine, reference: ReferenceModel | None, *, once: bool
) -> list[Update]:
    """The step's mini-batches with the log-probs that the policy loss compares with."""
    updates = []
    for number, batch in enumerate(batches):
        references = [reference.logprobs(micro) if reference else None for micro in batch.micros]
        proximal: list[Tensor | None] = [None] * len(batch.micros)
        if not once:
            with torch.no_grad():
                proximal = [engine.logprobs(micro)[0] for micro in batch.micros]
        updates.append(Update(number, batch, denominator_of(batch, section), references, proximal))
    return updates


def _tell_logprobs(updates: Sequence[Update], plugins: Sequence[StepPlugin]) -> None:
    """Show plug-ins every micro-batch of a step of several updates, its rollouts numbered through."""
    whole = whole_batch([update.batch for update in updates])
    for micro, logprobs in zip(whole.micros, (p for update in updates for p in update.proximal), strict=True):
        assert logprobs is not None
        for plugin in plugins:
            plugin.on_logprobs(micro, logprobs)


def _accumulate(
    update: Update,
    i: int,
    wanted: Objective,
    engine: Engine,
    plugins: Sequence[StepPlugin],
    sums: dict[str, Tensor],
    *,
    tell_logprobs: bool,
) -> None:
    """Add the gradient of micro-batch i, and its metrics to `sums`. Collective."""
    section, micro = wanted.section.loss, update.batch.micros[i]
    outputs = _forward(engine, micro, with_values=any(plugin.needs_values for plugin in plugins))
    logprobs = outputs.logprobs
    tokens = tokens_of(micro, section.aggregate, logprobs.device, update.references[i], update.proximal[i])
    for plugin in plugins:
        if tell_logprobs:
            plugin.on_logprobs(micro, logprobs)
        tokens = plugin.change_tokens(update, micro, tokens)
    loss, stats = objective(wanted.policy_loss, section, logprobs, outputs.entropy, tokens)
    loss = loss / update.denominator
    for plugin in plugins:
        added, more = plugin.loss(update, i, tokens, outputs)
        loss, stats = loss + added, stats | dict(more)
    engine.backward(loss)
    for plugin in plugins:
        for further in plugin.further_losses(update, micro, engine):
            engine.backward(further)
    for name, value in stats.items():
        sums[name] = sums[name].to(value.device) + value


def _forward(engine: Engine, micro: MicroBatch, *, with_values: bool) -> Outputs:
    return Outputs(*engine.logprobs_and_values(micro)) if with_values else Outputs(*engine.logprobs(micro), None)


def denominator_of(batch: Batch, section: LossSection) -> float:
    """Return what the batch's sum of losses is divided by: equal on every rank, whatever the micro-batches."""
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
    """Metrics of the step's updates, reduced to the step's as `cluster.metrics` declares them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: metric_of(name).reduced(row[name] for row in rows if name in row) for name in names}


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
