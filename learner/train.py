"""The learner's loop: cut → step → publish → release, on every rank."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from cluster.config import LearnerSection, LossSection
from cluster.failpoints import failpoint
from cluster.plugins import build
from cluster.types import Batch, Micro
from learner.advantages import ADVANTAGES, Advantage, Undivided
from learner.critic import Credited, credit
from learner.cut import Cut, CutBuffer, Mix, Select, Stored, cut, follow
from learner.engine import Engine
from learner.losses import LOSSES, PolicyLoss, objective
from learner.memory import NO_MEMORY, Memory
from learner.pack import pack
from learner.shares import Share, owned
from learner.steering import steered
from learner.terms import NO_TERMS, Terms, build_terms
from learner.tokens import tokens_of


class LoopBuffer(CutBuffer, Protocol):
    def release(self, policy: str, epoch: int, version: int, *, by: str | None = None) -> object: ...
    def emit(self, kind: str, fields: dict[str, Any]) -> object: ...
    def stored(self, ids: Sequence[str]) -> Sequence[Stored]: ...


class Publisher(Protocol):
    def publish(self, engine: Engine, step: int) -> None:
        """Hand over the weights; on return engines have them, or know where to fetch them. Collective."""
        ...


class ReferenceModel(Protocol):
    def logprobs(self, micro: Micro) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the roof wants to know or say. All but `stop` are called on every rank."""

    stop: Callable[[], bool] = lambda: False
    """Asked while waiting for groups: whether to leave before the next step."""
    stage: Callable[[str], None] = lambda what: None
    """What the loop does from now on, in words."""
    before_step: Callable[[int, Cut], None] = lambda step, cut: None
    """Before the optimizer step number `step` (from 0)."""
    after_step: Callable[[int, Cut, dict[str, float]], None] = lambda step, cut, metrics: None
    """After it, with its metrics, before its weights are published."""
    logprobs: Callable[[Micro, torch.Tensor], None] = lambda micro, logprobs: None
    """Each micro-batch, with the log-probs [B, L] that the step's loss is made of."""
    at_step: Callable[[int, Cut], None] = lambda done, cut: None
    """After `done` steps, with what the last one trained on."""
    checkpoint: Callable[[int], None] = lambda done: None
    """After `done` steps, published and released, before the next cut."""


def train(
    section: LearnerSection,
    buffer: LoopBuffer,
    engine: Engine,
    publisher: Publisher,
    mix: Mix,
    *,
    policy: str,
    epoch: int,
    select: Select | None = None,
    memory: Memory = NO_MEMORY,
    share: Share | None = None,
    reference: ReferenceModel | None = None,
    hooks: Hooks = Hooks(),
) -> int:
    """Train from `engine.step` to the end or until `hooks.stop`; returns the step reached.

    The buffer has been resumed, so `epoch` is current and its version is `engine.step`. `policy` claims and cuts; where
    several train on its groups, `share` says whose rollouts are trained on here, and whether this learner cuts.
    """
    recipe, settings = section, {}
    share = share or Share(policy)
    advantage: Advantage = build(ADVANTAGES, section.advantage.use, section.advantage.options, "learner.advantage")
    if section.value is not None:
        advantage = Undivided()  # the critic credits tokens once the step's weights are known
    policy_loss = build(LOSSES, section.loss.use, section.loss.options, "learner.loss")
    terms = build_terms(section)
    hooks.stage(f"publishes version {engine.step}")
    publisher.publish(engine, engine.step)  # also after a resume: engines may hold a dead history's weights
    for step in range(engine.step, recipe.steps):
        clock = Clock()
        hooks.stage(f"waits for the groups of step {step + 1}")
        decide = partial(
            cut, buffer, policy, epoch, step, mix, advantage, section,
            select=select, policies=share.policies, memory=memory,
        )  # fmt: skip
        whole = _same_on_all(engine, decide if share.cuts else None, partial(follow, buffer, policy, step), hooks.stop)
        if whole is None:
            break
        now = _own_part(whole, share)
        failpoint("learner.after_cut")
        clock.lap("cut")
        hooks.stage(f"trains step {step + 1}")
        if now.record.settings != settings:  # controllers have changed something since the step before
            settings = now.record.settings
            section = steered(recipe, settings)
            policy_loss = build(LOSSES, section.loss.use, section.loss.options, "learner.loss")
            terms = build_terms(section)
        batch = pack(
            now.groups, now.record, section, engine.rank, engine.world, epoch=epoch, append=terms.appended_token
        )
        clock.lap("pack")
        hooks.before_step(step, now)
        metrics = optimize(batch, section, engine, policy_loss, reference, terms, heard=hooks.logprobs)
        hooks.after_step(step, now, metrics)
        if engine.rank == 0:
            if memory.reads_scores and not now.scores:  # a repeated cut: its evidence is still stored
                now.scores.update({s.group.id: s.scores for s in buffer.stored(now.record.groups)})
            memory.after(now)
        failpoint("learner.after_step")
        clock.lap("optimize")
        hooks.stage(f"publishes version {step + 1}")
        publisher.publish(engine, step + 1)
        failpoint("learner.after_publish")
        # Release after publishing, not after the step: a task claimed in between would be sampled with old weights
        # and count as one version fresher than it is.
        if engine.rank == 0:
            buffer.release(policy, epoch, step + 1, by=share.policy)
            failpoint("learner.after_release")
        clock.lap("publish")
        if engine.rank == 0:
            decided = now.record.metrics if share.cuts else {}
            row = {**decided, **batch.metrics, **metrics, **clock.seconds(), "learner/wait_s": now.wait_s}
            buffer.emit("step", {"policy": share.policy, "epoch": epoch, "step": step + 1, "metrics": row})
        hooks.at_step(step + 1, whole)
        hooks.stage(f"saves step {step + 1}")
        hooks.checkpoint(step + 1)
    return engine.step


def _same_on_all(
    engine: Engine, decide: Callable[..., Cut | None] | None, fetch: Callable[..., Cut | None], stop: Callable[[], bool]
) -> Cut | None:
    """The step's cut: decided on rank 0, if this learner decides, and fetched by the others; None on all at a stop."""
    now = decide(stop=stop) if decide is not None and engine.rank == 0 else fetch(stop=stop)
    # Rank 0 alone knows whether there is a cut; a rank told to stop a moment earlier fetches it all the same.
    if not engine.agree(engine.rank == 0 and now is not None):
        return None
    now = now or fetch(stop=lambda: False)
    assert now is not None
    return now


def _own_part(now: Cut, share: Share) -> Cut:
    if not share.policies:
        return now
    groups, record = owned(now.groups, now.record, share.policy)
    return replace(now, groups=groups, record=record)


def optimize(
    batch: Batch,
    section: LearnerSection,
    engine: Engine,
    policy_loss: PolicyLoss,
    reference: ReferenceModel | None = None,
    terms: Terms = NO_TERMS,
    *,
    heard: Callable[[Micro, torch.Tensor], None] = lambda micro, logprobs: None,
) -> dict[str, float]:
    """One optimizer step on the batch; without trained tokens the step passes with a count."""
    counts = {"learner/tokens": float(batch.num_tokens), "learner/rollouts": float(batch.num_rollouts)}
    if batch.num_tokens == 0:
        engine.skip_step()
        return {**counts, "learner/num_empty_steps": 1.0}
    denominator = denominator_of(batch, section.loss)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    references = [reference.logprobs(micro) if reference else None for micro in batch.micros]
    credited = credit(batch, section.value, engine, references) if section.value else None
    credits = terms.credits(batch, engine, references)
    for i, micro in enumerate(credited.micros if credited else batch.micros):
        logprobs, entropy, values = _forward(engine, micro, credited)
        heard(micro, logprobs)
        tokens = credits.applied(micro, tokens_of(micro, section.loss.aggregate, logprobs.device, references[i]))
        loss, stats = objective(policy_loss, section.loss, logprobs, entropy, tokens)
        if credited is not None and values is not None:
            off, told = credited.value_loss(i, values, tokens)
            loss, stats = loss + off, stats | told
        engine.backward(loss / denominator + credits.surrogate(micro, logprobs))
        for name, value in stats.items():
            sums[name] = sums[name].to(value.device) + value
    update = engine.optimizer_step()
    totals = engine.total({name: float(value) for name, value in sums.items()})
    found = credits.metrics | (credited.metrics if credited else {})
    return {**counts, **_means(totals, batch.num_tokens, denominator), **found, **update}


def _forward(
    engine: Engine, micro: Micro, credited: Credited | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    return engine.logprobs_and_values(micro) if credited else (*engine.logprobs(micro), None)


def denominator_of(batch: Batch, section: LossSection) -> float:
    """What the step's sum of losses is divided by: the same on every rank, whatever the micro-batches."""
    if section.aggregate == "token":
        return batch.num_tokens
    # Dr. GRPO (arXiv:2503.20783, section 3): a constant a rollout, so that length changes no token's weight.
    return batch.num_rollouts * (section.constant_tokens or 1)


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


class Clock:
    """Seconds of each stage of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[f"learner/{name}_s"] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "learner/step_s": self._last - self._start}
