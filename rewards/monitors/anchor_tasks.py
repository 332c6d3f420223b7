"""Anchors: evaluation tasks that the initial policy was surest of, and what it answered. No labels.

A policy that learns keeps most of what it was sure of; one that collapses onto its own votes goes on giving it up. So
the share of anchors that are still answered as at the start is a held-out probe for runs that have no references. It is
a late one: some of what the policy was sure of was wrong, and learning corrects that first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

from cluster.types import Group
from rewards.parsing.answers import answer_of
from rewards.parsing.equality import key

SHARE = 0.2
"""Share of the evaluation tasks, the surest, that are anchors."""

Answers = dict[str, tuple[str, float]]
"""Task id → (hash of its answer, empty without one; mean log-prob of the chosen tokens, nats)."""


def answers(groups: Iterable[Group]) -> Answers:
    """Return the answer of each group's first rollout."""
    found = {}
    for group in groups:
        rollout = group.rollouts[0]
        answer = key(answer_of(rollout))
        digest = "" if answer is None else hashlib.blake2b(answer.encode(), digest_size=8).hexdigest()
        chosen = rollout.logprobs[rollout.loss_mask]
        found[group.task.id] = (digest, float(chosen.mean()) if len(chosen) else -math.inf)
    return found


def anchors_of(initial: Answers) -> dict[str, str]:
    """Task id → hash of the answer, for the surest tasks that have one."""
    sure = sorted((task for task in initial if initial[task][0]), key=lambda task: (-initial[task][1], task))
    return {task: initial[task][0] for task in sure[: math.ceil(SHARE * len(initial))]}


def agreement(anchors: Mapping[str, str], now: Answers) -> float:
    """Share of the anchors answered as at the start; NaN if none was asked."""
    asked = [task for task in anchors if task in now]
    return sum(now[task][0] == anchors[task] for task in asked) / len(asked) if asked else math.nan
