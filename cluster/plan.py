"""What a recipe's numbers mean, in a few sentences: what `--dry-run` prints."""

from __future__ import annotations

from pathlib import Path

from cluster.config import RunConfig
from cluster.room import labelled

BYTES_PER_TOKEN = 9
"""A stored token: id, mask, log-prob."""
BYTES_PER_ROLLOUT = 400


def plan(settings: RunConfig, directory: Path) -> str:
    """What the numbers of a recipe mean."""
    learner, rollout = settings.learner, settings.rollout
    groups, size = learner.groups_per_step, rollout.group_size
    outstanding = (learner.max_staleness + 1) * groups
    tokens = min(settings.engine.max_model_len, rollout.max_tokens * rollout.max_turns + 256)
    megabytes = outstanding * size * (tokens * BYTES_PER_TOKEN + BYTES_PER_ROLLOUT) / 1e6
    rewards = ", ".join(f"{n} × {r.weight:g}" for n, r in zip(settings.reward_names, settings.rewards, strict=True))
    return "\n".join(
        [
            f"{groups} tasks × {size} rollouts = {groups * size} samples a step, 1 optimiser step, "
            f"staleness ≤ {learner.max_staleness}, at most {outstanding} groups outstanding "
            f"(≤ {max(1, round(megabytes))} MB in Redis).",
            f"{_count(rollout.workers, 'engine')} ({settings.engine.use}), "
            f"{_count(settings.reward_workers.workers, 'reward worker')}, {_count(learner.ranks, 'learner rank')} "
            f"(ZeRO-{learner.zero_stage}, {learner.dtype}).",
            *_placement(settings),
            f"{learner.steps} steps on '{settings.tasks.use}', model '{settings.model.path}', rewards: {rewards}.",
            f"{_often(settings.evaluation.every_steps, 'Evaluation')}; "
            f"{_often(settings.checkpoint.every_steps, 'checkpoint')}.",
            f"Everything goes to {directory}.",
        ]
    )


def _placement(settings: RunConfig) -> list[str]:
    """Where the workers go, if not just anywhere."""
    layout, on = settings.placement.layout, labelled(settings)
    if layout == "any" and not on:
        return []
    on = f": {on}, which a cluster's nodes must carry" if on else ""
    return [f"Placement '{layout}'{on}."]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _often(every: int, what: str) -> str:
    return f"{what} every {every} steps" if every else f"{what} at the end only"
