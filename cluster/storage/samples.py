"""Rows of `samples.jsonl`: the first rollout of a group with its scores, and whether it was trained on or why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.types import SCORED, Group, Scores


def row_of(
    step: int, group: Group, scores: Mapping[str, Scores], reward: float | None = None, *, reason: str = ""
) -> dict[str, Any]:
    """The first rollout of a group as plain values; with a `reason`, the group was not trained on for it."""
    rollout = group.rollouts[0]
    notes = {name: s.provenance[0].note for name, s in scores.items() if s.state[0] != SCORED and s.provenance}
    return {
        "step": step,
        "group": group.id,
        "task": group.task.id,
        "prompt": group.task.prompt,
        "answer": group.task.answer,
        "text": rollout.text,
        "finish": rollout.finish,
        "scores": {name: number(s.values[0]) for name, s in scores.items()},
        "unscored": notes,
        "reward": number(reward),
        "trained": not reason,
        "reason": reason,
        "advantage": None,
    }


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if value is not None and np.isfinite(value) else None
