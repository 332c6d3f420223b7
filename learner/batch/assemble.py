"""Assemble a batch: which groups a step trains on, with which rewards and advantages. Rank 0 decides, all ranks read.

recorded already? ──yes──► its groups, as decided then (a resume)
    │ no
ready groups ─► mix, all at once ─► select ─► drop the useless, finally ─► refill ≤ max_refills rounds ─► advantages
                                                                                          record ─► batch ◄─┘
A refilled step is mixed and selected anew, the kept groups included: what a reward is worth may depend on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.config import LearnerSection
from cluster.metrics import metric_of
from cluster.types import INVALID_TOOL_CALL, AssembledBatch, BatchRecord, Group, GroupReward, ScoredGroup, Scores
from learner.advantages.chains import joined, unbroken
from learner.advantages.estimators import Advantage, StepAdvantages
from learner.step_plugin import StepPlugin
from learner.types import AssemblyBuffer, Considered, Mix, Select

ZERO_VARIANCE = "zero_variance"
TOO_FEW_SCORES = "too_few_scores"
TRUNCATED = "truncated"
NO_PAIRS = "no_pairs"
POLL_S = 1.0
"""How often a waiting learner looks whether it should stop."""


@dataclass(slots=True)
class Assembler:
    """What decides the batch of every step, on rank 0 of one learner."""

    buffer: AssemblyBuffer
    policy: str
    """The policy whose groups are assembled."""
    epoch: int
    mix: Mix
    advantages: StepAdvantages
    select: Select | None = None
    arrange: Callable[[Mapping[str, Any]], tuple[Mix, Select | None]] | None = None
    """Mixer and selection as the recipe would have them with these values of dotted keys, for controllers."""
    plugins: Sequence[StepPlugin] = ()

    @property
    def estimator(self) -> Advantage:
        return self.advantages.estimator

    def assemble(
        self, step: int, section: LearnerSection, stop: Callable[[], bool] = lambda: False
    ) -> AssembledBatch | None:
        """Decide and record what `step` trains on, or repeat what was decided before. None if told to stop meanwhile.

        A dropped group is final. After `max_refills` rounds the step trains on what is there; that may be nothing.
        """
        buffer, policy = self.buffer, self.policy
        existing = buffer.recorded(policy, step)
        if existing is not None:
            return AssembledBatch(*_load(buffer, existing))
        seen: dict[str, ScoredGroup] = {}
        start = time.monotonic()
        stored: Sequence[ScoredGroup] | None = ()
        dropped: dict[str, str] = {}
        for refills_left in range(section.max_refills, -1, -1):
            stored = self._wait(step, section.groups_per_step, stop)
            if stored is None:
                return None
            dropped = self._filter(stored, seen, section)
            if not dropped or not refills_left:
                break
            buffer.drop(policy, self.epoch, dropped)
        waited = time.monotonic() - start
        kept = [seen[s.group.id] for s in stored if not seen[s.group.id].reason][: section.groups_per_step]
        members = [s.group for s in kept]
        decided = self._decided([*seen.values()], kept, step, section)
        considered = self._considered([*seen.values()], section)
        for plugin in self.plugins:
            decided = plugin.before_record(decided, members, considered)
        # What the last round filtered leaves with the record: the learner does not wait for its replacement.
        record = buffer.record(self.epoch, decided, dropped)
        groups = members
        if record.groups != decided.groups:
            record, groups = _load(buffer, record)
        left_out = [s for s in seen.values() if s.reason]
        return AssembledBatch(record, groups, waited, {s.group.id: s.scores for s in kept}, left_out)

    def _wait(self, step: int, count: int, stop: Callable[[], bool]) -> Sequence[ScoredGroup] | None:
        """What the step trains on or filters, all of it; fewer than `count` only where the tasks have run out."""
        while not stop():
            stored = self.buffer.ready(self.policy, self.epoch, step, limit=count, timeout_s=POLL_S, partial=False)
            if stored is not None:
                return stored
        return None

    def _filter(
        self, stored: Sequence[ScoredGroup], seen: dict[str, ScoredGroup], section: LearnerSection
    ) -> dict[str, str]:
        """Aggregate and select this round's groups together; returns id → reason of what must go."""
        groups, scores = [s.group for s in stored], [s.scores for s in stored]
        rewards = self.mix(groups, scores)
        selected = _selected(groups, scores, rewards, self.select, section)
        dropped = {}
        for item, before, after in zip(stored, rewards, selected, strict=True):
            found = replace(item, reward=before, selected=after)
            flat = self.advantages.no_gradient(found, section.turn_discount)
            reason = _useless(before, after, flat, section)
            if reason is not None:
                dropped[item.group.id] = reason
            seen[item.group.id] = replace(found, reason=reason or "")
        return dropped

    def _decided(
        self, seen: Sequence[ScoredGroup], kept: Sequence[ScoredGroup], step: int, section: LearnerSection
    ) -> BatchRecord:
        selected = [s.selected for s in kept if s.selected is not None]
        return BatchRecord(
            policy=self.policy,
            step=step,
            groups=tuple(s.group.id for s in kept),
            rewards=tuple(s.rewards for s in selected),
            advantages=self.advantages.of(kept, section.turn_discount),
            metrics=_metrics(seen, kept, step, section.turn_discount, self.advantages),
            pairs=tuple(s.pairs or () for s in selected) if any(s.pairs is not None for s in selected) else (),
            token_weights=tuple(map(_weights, selected)) if any(s.token_weights for s in selected) else (),
        )

    def _considered(self, seen: Sequence[ScoredGroup], section: LearnerSection) -> Considered:
        groups, scores = [s.group for s in seen], [s.scores for s in seen]

        def selected_under(settings: Mapping[str, Any]) -> list[GroupReward]:
            assert self.arrange is not None, "no recipe is being steered"
            mix, select = self.arrange(settings)
            return _selected(groups, scores, mix(groups, scores), select, section)

        return Considered(groups, scores, selected_under)


def wait_for_record(
    buffer: AssemblyBuffer, policy: str, step: int, *, stop: Callable[[], bool]
) -> AssembledBatch | None:
    """Wait, on another rank, for the batch that rank 0 records. None if told to stop while waiting."""
    start = time.monotonic()
    while (record := buffer.recorded(policy, step, timeout_s=POLL_S)) is None:
        if stop():
            return None
    return AssembledBatch(*_load(buffer, record), time.monotonic() - start)


def _selected(
    groups: Sequence[Group],
    scores: Sequence[dict[str, Scores]],
    mixed: list[GroupReward],
    select: Select | None,
    section: LearnerSection,
) -> list[GroupReward]:
    """What the learner and the selectors leave of the mixed groups."""
    whole = [_untruncated(g, m) for g, m in zip(groups, mixed, strict=True)] if section.drop_truncated else mixed
    whole = [unbroken(g, m) for g, m in zip(groups, whole, strict=True)]
    if select is None:
        return whole
    return [unbroken(g, m) for g, m in zip(groups, select(groups, scores, whole), strict=True)]


def _untruncated(group: Group, mixed: GroupReward) -> GroupReward:
    cut_short = [r.truncated for r in group.rollouts]
    return replace(mixed, rewards=np.where(cut_short, np.nan, mixed.rewards))


def _useless(mixed: GroupReward, selected: GroupReward, flat: bool, section: LearnerSection) -> str | None:
    """Why nothing can be learnt from a group, if so; `flat` where its returns are all equal."""
    if selected.drop is not None:
        return selected.drop
    if not np.isfinite(selected.rewards).any():
        return TRUNCATED if np.isfinite(mixed.rewards).any() else TOO_FEW_SCORES
    if section.loss.coef == 0 and selected.pairs is not None:
        return None if selected.pairs else NO_PAIRS
    alone = len(selected.rewards) == 1  # equal to itself, whatever it is worth
    wanted = section.drop_zero_variance is not False  # None: `Objective.filtering` found nothing else that acts on it
    if section.loss.coef and wanted and flat and not alone and not selected.pairs:
        return ZERO_VARIANCE
    return None


def _weights(mixed: GroupReward) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(w, np.float32) for w in mixed.token_weights or ())


def _load(buffer: AssemblyBuffer, record: BatchRecord) -> tuple[BatchRecord, list[Group]]:
    """The groups of a record, and the record without those that cannot be read: every rank leaves out the same."""
    found = {g.id: g for g in buffer.load(record.groups)}
    keep = [i for i, id in enumerate(record.groups) if id in found]
    if len(keep) < len(record.groups):
        record = replace(
            record,
            groups=tuple(record.groups[i] for i in keep),
            rewards=tuple(record.rewards[i] for i in keep),
            advantages=tuple(record.advantages[i] for i in keep),
            pairs=tuple(record.pairs[i] for i in keep) if record.pairs else (),
            token_weights=tuple(record.token_weights[i] for i in keep) if record.token_weights else (),
        )
    return record, [found[i] for i in record.groups]


def _metrics(
    seen: Sequence[ScoredGroup], kept: Sequence[ScoredGroup], step: int, discount: float, advantages: StepAdvantages
) -> dict[str, float]:
    """What was sampled and what of it is trained on.

    Rewards and lengths are of every group looked at, dropped ones included: the mean over the trained ones alone
    would be pulled to the middle by the zero-variance filter.
    """
    aggregated = [joined(replace(s, selected=None))[0] for s in seen]
    rollouts = [r for s in aggregated for r in s.group.rollouts]
    rewards = np.concatenate([np.empty(0), *(s.rewards for s in aggregated)])
    flat = [advantages.all_equal(s, discount) for s in aggregated if np.isfinite(s.rewards).any()]
    known, owners = rewards[np.isfinite(rewards)], np.array([r.policy for r in rollouts])
    staleness = [step - s.group.version for s in kept]
    reasons = [s.reason for s in seen if s.reason]
    metrics = {
        "reward/mean": _mean(known),
        "reward/std": float(known.std()) if len(known) else float("nan"),
        "reward/known_frac": len(known) / len(rewards) if len(rewards) else float("nan"),
        "reward/zero_variance_frac": _mean(flat),
        "policy/staleness_steps": _mean(staleness),
        "policy/staleness_max_steps": float(max(staleness, default=0)),
        "rollout/length_tokens": _mean([r.num_tokens for r in rollouts]),
        "rollout/truncated_frac": _mean([r.truncated for r in rollouts]),
        "rollout/num_cut_observations": float(sum(r.num_cut_observations for r in rollouts)),
        "rollout/num_invalid_tool_calls": float(sum(e.text == INVALID_TOOL_CALL for r in rollouts for e in r.events)),
        "reward/outdated_frac": _mean([s.outdated for s in kept]),
        "learner/groups": float(len(kept)),
        **{
            f"reward/of_{name}_mean": _mean(rewards[np.isfinite(rewards) & (owners == name)])
            for name in advantages.policies
        },
        **_pair_metrics([s.selected for s in kept if s.selected is not None]),
        **{f"buffer/num_dropped_{reason}": float(reasons.count(reason)) for reason in sorted(set(reasons))},
        **_mixed_metrics([s.reward.metrics for s in seen if s.reward is not None]),
    }
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def _pair_metrics(selected: list[GroupReward]) -> dict[str, float]:
    pairs = [p for s in selected for p in s.pairs or ()]
    if all(s.pairs is None for s in selected):
        return {}
    return {
        "pairs/num_pairs": float(len(pairs)),
        "pairs/margin_mean": _mean([p.margin for p in pairs]),
        "pairs/label_mean": _mean([p.label for p in pairs]),
    }


def _mixed_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mixer's own metrics of groups, reduced to the step's as `cluster.metrics` declares them."""
    names = sorted({name for row in rows for name in row})
    return {name: metric_of(name).reduced(row[name] for row in rows if name in row) for name in names}


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
