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
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cluster.config import LearnerSection
from cluster.types import BatchRecord, Group, GroupReward, Scores
from learner.advantages.estimators import Advantage, checked
from learner.advantages.multi_policy import advantages_among, no_gradient
from learner.advantages.returns import returns_of
from learner.plugin_state import ADVANTAGE, NO_STATE, PluginState
from learner.types import AssembledBatch, AssemblyBuffer, Considered, LeftOut, Mix, Select, Stored

ZERO_VARIANCE = "zero_variance"
TOO_FEW_SCORES = "too_few_scores"
TRUNCATED = "truncated"
NO_PAIRS = "no_pairs"
POLL_S = 1.0
"""How often a waiting learner looks whether it should stop."""


@dataclass(slots=True)
class _Seen:
    """Every group that was considered, kept or dropped."""

    stored: dict[str, Stored] = field(default_factory=dict)
    mixed: dict[str, GroupReward] = field(default_factory=dict)
    selected: dict[str, GroupReward] = field(default_factory=dict)
    """The same, rewards being NaN also where the learner or a selector leaves a rollout out."""
    returns: dict[str, np.ndarray] = field(default_factory=dict)
    """[G, K]: what each turn returns, NaN as above and where there is no such turn."""
    dropped: dict[str, str] = field(default_factory=dict)


def assemble(
    buffer: AssemblyBuffer,
    policy: str,
    epoch: int,
    step: int,
    mix: Mix,
    advantage: Advantage,
    section: LearnerSection,
    *,
    select: Select | None = None,
    policies: Sequence[str] = (),
    memory: PluginState = NO_STATE,
    stop: Callable[[], bool] = lambda: False,
) -> AssembledBatch | None:
    """Decide and record what `step` trains on, or repeat what was decided before. None if told to stop while waiting.

    Of several `policies` with rollouts in the same groups each is compared with itself alone.

    A dropped group is final. After `max_refills` rounds the step trains on what is there; that may be nothing.
    """
    existing = buffer.recorded(policy, step)
    if existing is not None:
        return AssembledBatch(*_load(buffer, existing))
    seen, start = _Seen(), time.monotonic()
    stored: Sequence[Stored] | None = ()
    dropped: dict[str, str] = {}
    for refills_left in range(section.max_refills, -1, -1):
        stored = _wait(buffer, policy, epoch, step, section.groups_per_step, stop)
        if stored is None:
            return None
        dropped = _filter(stored, seen, mix, select, advantage, section, policies)
        if not dropped or not refills_left:
            break
        buffer.drop(policy, epoch, dropped)
    waited = time.monotonic() - start
    kept = [s.group.id for s in stored if s.group.id not in seen.dropped][: section.groups_per_step]
    selected = [seen.selected[i] for i in kept]
    rewards = tuple(s.rewards for s in selected)
    members = [seen.stored[i].group for i in kept]
    decided = BatchRecord(
        policy=policy,
        step=step,
        groups=tuple(kept),
        rewards=rewards,
        advantages=advantages_among(
            policies,
            advantage,
            section.advantage.use,
            members,
            [seen.returns[i] for i in kept],
            selected,
            memory.of(ADVANTAGE),
        ),
        metrics=_metrics(seen, kept, step, section.turn_discount, policies),
        pairs=tuple(s.pairs or () for s in selected) if any(s.pairs is not None for s in selected) else (),
        token_weights=tuple(map(_weights, selected)) if any(s.token_weights for s in selected) else (),
    )
    decided = memory.completed(decided, members, _considered(seen, section, memory))
    # What the last round filtered leaves with the record: nobody waits for its replacement.
    record = buffer.record(epoch, decided, dropped)
    groups = members
    if record.groups != decided.groups:
        record, groups = _load(buffer, record)
    left_out = [LeftOut(seen.stored[i].group, seen.stored[i].scores, seen.mixed[i].rewards, reason)
                for i, reason in seen.dropped.items()]  # fmt: skip
    return AssembledBatch(record, groups, waited, {i: seen.stored[i].scores for i in kept}, left_out)


def wait_for_record(
    buffer: AssemblyBuffer, policy: str, step: int, *, stop: Callable[[], bool]
) -> AssembledBatch | None:
    """Wait, on another rank, for the batch that rank 0 records. None if told to stop while waiting."""
    start = time.monotonic()
    while (record := buffer.recorded(policy, step, timeout_s=POLL_S)) is None:
        if stop():
            return None
    return AssembledBatch(*_load(buffer, record), time.monotonic() - start)


def _wait(
    buffer: AssemblyBuffer, policy: str, epoch: int, step: int, count: int, stop: Callable[[], bool]
) -> Sequence[Stored] | None:
    while not stop():
        asked = time.monotonic()
        stored = buffer.ready(policy, epoch, step, limit=count, timeout_s=POLL_S)
        # An answer before the time is up is final even if it is short: the tasks have run out.
        if len(stored) >= count or time.monotonic() - asked < POLL_S:
            return stored
    return None


def _filter(
    stored: Sequence[Stored],
    seen: _Seen,
    mix: Mix,
    select: Select | None,
    advantage: Advantage,
    section: LearnerSection,
    policies: Sequence[str],
) -> dict[str, str]:
    """Mix and select this round's groups together; id → reason of what must go."""
    groups, scores = [s.group for s in stored], [s.scores for s in stored]
    mixed = mix(groups, scores)
    selected = _selected(groups, scores, mixed, select, section)
    dropped = {}
    for item, before, after in zip(stored, mixed, selected, strict=True):
        id = item.group.id
        seen.stored[id], seen.mixed[id], seen.selected[id] = item, before, after
        returns = returns_of(item.group, after, after.rewards, section.turn_discount)
        seen.returns[id] = returns
        flat = no_gradient(policies, item.group, returns) and not _varies_by_token(
            advantage, item.group, after, section
        )
        reason = _useless(before, after, flat, section)
        if reason is not None:
            dropped[id] = reason
    seen.dropped |= dropped
    return dropped


def _selected(
    groups: Sequence[Group],
    scores: Sequence[dict[str, Scores]],
    mixed: list[GroupReward],
    select: Select | None,
    section: LearnerSection,
) -> list[GroupReward]:
    """What the learner and the selectors leave of the mixed groups."""
    whole = [_untruncated(g, m) for g, m in zip(groups, mixed, strict=True)] if section.drop_truncated else mixed
    return whole if select is None else select(groups, scores, whole)


def _considered(seen: _Seen, section: LearnerSection, memory: PluginState) -> Considered:
    groups, scores = [s.group for s in seen.stored.values()], [s.scores for s in seen.stored.values()]

    def selected_under(settings: Mapping[str, Any]) -> list[GroupReward]:
        mix, select = memory.arranged(settings)
        return _selected(groups, scores, mix(groups, scores), select, section)

    return Considered(groups, scores, selected_under)


def _varies_by_token(advantage: Advantage, group: Group, mixed: GroupReward, section: LearnerSection) -> bool:
    """Whether an estimator of token advantages finds some in a group whose returns are all equal."""
    if not advantage.token_level:
        return False
    (found,) = checked(advantage, section.advantage.use, [group], [mixed.rewards], [mixed])
    return any(np.nan_to_num(values).any() for values in found)


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


def _metrics(seen: _Seen, kept: list[str], step: int, discount: float, policies: Sequence[str]) -> dict[str, float]:
    """What was sampled and what of it is trained on.

    Rewards and lengths are of every group looked at, dropped ones included: the mean over the trained ones alone
    would be pulled to the middle by the zero-variance filter.
    """
    groups = [s.group for s in seen.stored.values()]
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = np.concatenate([np.empty(0), *(m.rewards for m in seen.mixed.values())])
    flat = [
        no_gradient(policies, group, returns_of(group, m, m.rewards, discount))
        for group, m in zip(groups, seen.mixed.values(), strict=True)
        if np.isfinite(m.rewards).any()
    ]
    known, owners = rewards[np.isfinite(rewards)], np.array([r.policy for r in rollouts])
    staleness = [step - seen.stored[i].group.version for i in kept]
    reasons = list(seen.dropped.values())
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
        "reward/outdated_frac": _mean([seen.stored[i].outdated for i in kept]),
        "learner/groups": float(len(kept)),
        **{f"reward/of_{name}_mean": _mean(rewards[np.isfinite(rewards) & (owners == name)]) for name in policies},
        **_pair_metrics([seen.selected[i] for i in kept]),
        **{f"buffer/num_dropped_{reason}": float(reasons.count(reason)) for reason in sorted(set(reasons))},
        **_mixed_metrics([m.metrics for m in seen.mixed.values()]),
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
    """The mixer's own metrics over groups: counts (`…/num_…`, `…_scores`) are added up, the rest averaged."""
    result = {}
    for name in sorted({n for row in rows for n in row}):
        values = [row[name] for row in rows if np.isfinite(row.get(name, np.nan))]
        is_count = name.rsplit("/", 1)[-1].startswith("num_") or name.endswith("_scores")
        if values:
            result[name] = float(np.sum(values)) if is_count else float(np.mean(values))
    return result


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
