"""What a recipe's numbers mean, in a few sentences: what `--dry-run` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.config import LearnerSection, RunConfig
from cluster.placement.resources import labelled
from cluster.plugins import build

BYTES_PER_TOKEN = 9
"""A stored token: id, mask, log-prob."""
BYTES_PER_ROLLOUT = 400


def plan(settings: RunConfig, directory: Path) -> str:
    """What the numbers of a recipe mean."""
    from actors.environments.multi_policy import MultiPolicyEnvironment
    from actors.environments.search import SearchEnvironment

    learner, rollout = settings.learner, settings.rollout
    policies = [settings.of_policy(name) for name in settings.policy_names]
    groups, size = learner.groups_per_step, rollout.group_size * len(policies) * len(rollout.prompt_variants)
    each = f"{rollout.group_size} rollouts" + (f" of each of {len(policies)} policies" if settings.policies else "")
    environment = _environment(settings)
    if isinstance(environment, MultiPolicyEnvironment):
        size = environment.size(len(policies))
        each = f"{size} rollouts, all policies together,"
    elif isinstance(environment, SearchEnvironment):
        size = environment.size
        each = f"a search that leaves at most {size} rollouts"
    outstanding = (learner.max_staleness + 1) * groups
    tokens = min(settings.engine.max_model_len, rollout.max_tokens * rollout.max_turns + 256)
    megabytes = outstanding * size * (tokens * BYTES_PER_TOKEN + BYTES_PER_ROLLOUT) / 1e6
    rewards = ", ".join(f"{n} × {r.weight:g}" for n, r in zip(settings.reward_names, settings.rewards, strict=True))
    return "\n".join(
        [
            f"{groups} tasks × {each} = {groups * size} samples a step, {_updates(learner)}, "
            f"staleness ≤ {learner.max_staleness}, "
            f"the policy's own dropout {'on' if learner.dropout else 'off'}, at most {outstanding} groups outstanding "
            f"(≤ {max(1, round(megabytes))} MB in Redis).",
            *(
                (f"{name}: " if settings.policies else "") + _places(own)
                for name, own in zip(settings.policy_names, policies, strict=True)
            ),
            *_placement(settings),
            f"{learner.steps} steps on '{settings.tasks.use}', "
            f"{_count(settings.reward_workers.workers, 'reward worker')}, rewards: {rewards}.",
            f"Environment '{rollout.environment.use}', advantages '{learner.advantage.use}', "
            f"loss '{learner.loss.use}'.",
            f"{_often(settings.evaluation.every_steps, 'Evaluation')}; "
            + "".join(f"{_often(e.every_steps, f'evaluation {e.name!r}')}; " for e in settings.evaluations)
            + f"{_often(settings.checkpoint.every_steps, 'checkpoint')}.",
            f"Everything goes to {directory}.",
        ]
    )


def _updates(learner: LearnerSection) -> str:
    count = min(learner.updates_per_batch, learner.groups_per_step) * learner.passes_per_batch
    return _count(count, "optimiser step")


def _environment(settings: RunConfig) -> Any:
    from actors.environments import ENVIRONMENTS

    section = settings.rollout.environment
    return build(ENVIRONMENTS, section.use, section.options, "rollout.environment")


def _places(policy: RunConfig) -> str:
    """What one policy needs."""
    learner = policy.learner
    return (
        f"{_count(policy.rollout.workers, 'engine')} ({policy.engine.use}), {_count(learner.ranks, 'learner rank')} "
        f"(ZeRO-{learner.zero_stage}, {learner.dtype}), model '{policy.model.path}'."
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
