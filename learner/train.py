"""The learner's loop: assemble → step → publish → release, on every rank."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from cluster.config import LearnerSection, LossSection
from cluster.metrics import metric_of
from cluster.plugins import build
from cluster.process.failpoints import failpoint
from cluster.process.spans import SpanLog
from cluster.types import AssembledBatch, Batch, MicroBatch
from cluster.types.events import StepTaken
from learner.advantages.estimators import Advantage
from learner.batch.assemble import Assembler, wait_for_record
from learner.losses.policy_losses import LOSSES, PolicyLoss, objective
from learner.losses.sequence_losses import build_sequence_losses
from learner.losses.value_loss import ValueLoss
from learner.pack import mini_batches, tokens_of, whole_batch, without_overlong
from learner.step_plugin import Outputs, StepPlugin, Update
from learner.types import Engine, LoopBuffer, Publisher, ReferenceModel


def train(run: LearnerRun) -> int:
    """Train from the engine's step to `learner.steps` or until a stop; returns the step reached. Collective.

    The buffer has been resumed, so its epoch is current and its version is the engine's step.
    """
    run.publish()  # also after a resume: engines may hold a dead history's weights
    while (batch := run.assemble()) is not None:  # waits for groups_per_step scored groups, or for a stop
        run.optimize(batch)
        run.publish()  # returns once rollouts sample with the weights, or know where to fetch them
        # Release after publishing, not after the step: a task claimed in between would be sampled with old weights
        # and count as one version fresher than it is.
        run.release(batch)  # only now may new tasks be claimed
        run.after_step(batch)  # plug-ins: archive, samples, checkpoint
    for plugin in run.plugins:
        plugin.finish(run.engine.step)
    return run.engine.step


@dataclass(slots=True)
class LearnerRun:
    """One rank of a learner in the training loop: its parts, and one method for each step of the pipeline."""

    section: LearnerSection
    engine: Engine
    buffer: LoopBuffer
    publisher: Publisher
    policy: str
    """The policy that the learner trains."""
    epoch: int
    assembler: Assembler | None = None
    """What decides the batches, on rank 0; None where the learner of another policy decides them."""
    batches_of: str = ""
    """The policy whose batches this learner trains on; its own by default."""
    plugins: Sequence[StepPlugin] = ()
    """What the recipe adds to a step, in the order in which hooks are called."""
    reference: ReferenceModel | None = None
    shares_prefixes: bool = False
    """Whether the engine computes trees of rollouts."""
    max_positions: int | None = None
    """Rollouts with more tokens are left out and counted; None leaves none out."""
    stop: Callable[[], bool] = lambda: False
    """Asked while the learner waits for groups: whether to leave before the next step."""
    stage: Callable[[str], None] = lambda what: None
    """Told what the loop does from now on, in words."""
    objective: Objective = field(init=False)
    """What the last step minimised, or the next one will unless a plug-in configures it otherwise."""
    _clock: Clock = field(init=False)
    _spans: SpanLog = field(init=False, default_factory=SpanLog)
    _metrics: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.batches_of = self.batches_of or self.policy
        self.objective, self._clock = Objective.of(self.section), Clock()

    def publish(self) -> None:
        """Hand the weights of the engine's step to the engines that sample."""
        self.stage(f"publishes version {self.engine.step}")
        self.publisher.publish(self.engine, self.engine.step)

    def assemble(self) -> AssembledBatch | None:
        """Return what this learner trains on in the next step; None after the last step, or at a stop."""
        step = self.engine.step
        if step >= self.section.steps:
            return None
        self._clock = Clock()
        self.stage(f"waits for the groups of step {step + 1}")
        batch = self._agreed(step)
        if batch is None:
            return None
        append = self.objective.append
        record, overlong = without_overlong(batch.groups, batch.record, self.max_positions, append=append)
        self._metrics = {"learner/num_overlong_rollouts": float(overlong)} if overlong else {}
        batch = replace(batch, record=record)
        for plugin in self.plugins:
            batch = plugin.after_assemble(batch)
        failpoint("learner.after_assemble")
        self._clock.mark("assemble")
        return batch

    def optimize(self, batch: AssembledBatch) -> None:
        """Take the step's optimizer steps, one for each mini-batch and pass."""
        step, engine = batch.record.step, self.engine
        self.stage(f"trains step {step + 1}")
        section = self.section
        for plugin in self.plugins:
            section = plugin.configure(section, batch)
        if section != self.objective.section:
            self.objective = Objective.of(section)
        batches = mini_batches(
            batch.groups, batch.record, section, engine.rank, engine.world,
            epoch=self.epoch, append=self.objective.append, shares=self.shares_prefixes,
        )  # fmt: skip
        self._clock.mark("pack")
        for plugin in self.plugins:
            plugin.before_step(step, batch)
        metrics = optimize(batches, self.objective, engine, self.reference, self.plugins)
        for plugin in self.plugins:
            plugin.after_step(step, batch, metrics)
        self._metrics |= metrics
        failpoint("learner.after_step")
        self._clock.mark("optimize")

    def release(self, batch: AssembledBatch) -> None:
        """Make the published version current, which admits more claims, and emit the step's row of metrics."""
        failpoint("learner.after_publish")
        done = self.engine.step
        if self.engine.rank == 0:
            self.buffer.release(self.batches_of, self.epoch, done, by=self.policy)
            failpoint("learner.after_release")
        self._clock.mark("publish")
        if self.engine.rank == 0:
            decided = batch.record.metrics if self.assembler is not None else {}
            row = {**decided, **self._metrics, **self._clock.seconds(), "learner/wait_s": batch.wait_s}
            self._clock.add_to(self._spans, done, batch.wait_s)
            spans = self._spans.take()
            self.buffer.emit(StepTaken(policy=self.policy, epoch=self.epoch, step=done, metrics=row, spans=spans))

    def after_step(self, batch: AssembledBatch) -> None:
        """Let plug-ins look at the step that was released."""
        with self._spans.span("after step", f"step {self.engine.step}"):
            for plugin in self.plugins:
                plugin.after_release(self.engine.step, batch)

    def _agreed(self, step: int) -> AssembledBatch | None:
        """The step's batch: rank 0 of the learner that decides makes it, the others fetch it; None on all at a stop."""
        fetch = partial(wait_for_record, self.buffer, self.batches_of, step)
        if self.assembler is not None and self.engine.rank == 0:
            batch = self.assembler.assemble(step, self.objective.filtering(self.assembler.estimator), self.stop)
        else:
            batch = fetch(stop=self.stop)
        # Rank 0 alone knows whether there is a batch; a rank told to stop a moment earlier fetches it all the same.
        if not self.engine.agree(self.engine.rank == 0 and batch is not None):
            return None
        batch = batch or fetch(stop=lambda: False)
        assert batch is not None
        return batch


class Clock:
    """Seconds of each stage of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._stages: dict[str, float] = {}
        self._ends: dict[str, float] = {}

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self._stages[f"learner/{name}_s"] = now - self._last
        self._ends[name] = self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._stages, "learner/step_s": self._last - self._start}

    def add_to(self, spans: SpanLog, step: int, wait_s: float) -> None:
        """Add the step and its stages; it waited for groups for the first `wait_s` seconds."""
        begin, about = self._start, f"step {step}"
        spans.add("step", begin, self._last, about)
        spans.add("wait for groups", begin, min(begin + wait_s, self._last), about)
        for name, end in self._ends.items():
            spans.add(name, begin, end, about)
            begin = end


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
            plugins.append(build_sequence_losses(section))
        return Objective(section, loss, tuple(plugins))

    @property
    def append(self) -> int | None:
        """A token that a plug-in wants behind every rollout."""
        return next((p.appended_token for p in self.plugins if p.appended_token is not None), None)

    @property
    def follows_advantages(self) -> bool:
        """Whether the loss, plug-ins aside, has no gradient where advantages are 0."""
        loss = self.section.loss
        terms = loss.kl_coef > 0 or loss.entropy_coef != 0 or self.policy_loss.need_reference
        return not terms and type(self.policy_loss) in LOSSES.values()

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
    found = {**counts, **_means(totals, num_tokens, denominator), **_averaged(rows), **num_updates}
    found["loss/total"] += found.get("loss/sequence", 0.0) + found.get("loss/asking", 0.0)
    return found


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
    """Add the gradient of micro-batch i, if it has one, and its metrics to `sums`. Collective."""
    section, micro = wanted.section.loss, update.batch.micros[i]
    trains = not (micro.idle and wanted.follows_advantages) or any(map(_adds_gradient, plugins))
    with torch.set_grad_enabled(trains):
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
    if trains:
        engine.backward(loss)
        for plugin in plugins:
            for further in plugin.further_losses(update, micro, engine):
                engine.backward(further)
    for name, value in stats.items():
        sums[name] = sums[name].to(value.device) + value


def _adds_gradient(plugin: StepPlugin) -> bool:
    """Whether a plug-in may give a token without advantage a gradient."""
    hooks = ("change_tokens", "loss", "further_losses")
    return any(getattr(type(plugin), hook) is not getattr(StepPlugin, hook) for hook in hooks)


def _forward(engine: Engine, micro: MicroBatch, *, with_values: bool) -> Outputs:
    return Outputs(*engine.logprobs_and_values(micro)) if with_values else Outputs(*engine.logprobs(micro), None)


def denominator_of(batch: Batch, section: LossSection) -> float:
    """Return what the batch's sum of losses is divided by: equal on every rank, whatever the micro-batches."""
    if section.aggregate == "token":
        return batch.num_tokens
    # Dr. GRPO (arXiv:2503.20783, section 3): a constant a rollout, so that length changes no token's weight.
    return batch.num_rollouts * (section.constant_tokens or 1)


def _packing(batches: Sequence[Batch]) -> dict[str, float]:
    """How the rows are packed: shares averaged over the mini-batches, micro-batches counted."""
    counted = {"learner/num_micros": float(sum(b.metrics.get("learner/num_micros", 0.0) for b in batches))}
    for name in ("learner/padding_frac", "learner/shared_frac"):
        if found := [b.metrics[name] for b in batches if name in b.metrics]:
            counted[name] = sum(found) / len(found)
    return counted


def _averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of the step's updates, reduced to the step's as `cluster.metrics` declares them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: metric_of(name).reduced(row[name] for row in rows if name in row) for name in names}


def _means(totals: dict[str, float], num_tokens: int, denominator: float) -> dict[str, float]:
    means = {name: value / num_tokens for name, value in totals.items()}
    for name in totals.keys() & {"loss/policy", "loss/total", "loss/value"}:  # these carry the tokens' weights
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
