"""Rewards tried before the run: each scores a made-up group of a real task, as a reward worker would ask it.

A reward that raises, hangs or returns another shape for every rollout would let the run train on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cluster.config import RunConfig
from cluster.driver import reward_trial
from cluster.errors import ConfigError
from cluster.types import Claim, Group, Rollout, Task, Turn, VersionSpan
from rewards.base import Reward
from rewards.registry import build_reward

OFFLINE = {"thread", "verify", "log"}
"""Services that a reward has before the run; judges, models and the tokenizer come with it."""
JUDGE = "judge"
"""`cluster.driver.preflight_judges` tries these: a reward that needs no other service is asked for its questions."""
CLAIM = Claim("trial/0/0", "policy", 0, 0, 0, 0, "trial")


def rewards(settings: RunConfig, head: Sequence[Task]) -> None:
    """Try every reward that can be tried before the run on a made-up group of the first task.

    Raises ConfigError for a reward that fails on all rollouts of the group.
    """
    if not head:
        return
    group = made_up(settings, head[0])
    for i, section in enumerate(settings.rewards):
        reward = build_reward(section, f"rewards[{i}]")
        if _later(reward) or reward.declines(head[0]):
            continue
        apart = reward_trial.is_foreign(reward)
        name = settings.reward_names[i]
        failure = (
            reward_trial.try_apart(settings, i, group) if apart else reward_trial.try_here(reward, section, group, name)
        )
        if failure:
            raise ConfigError(
                f"rewards[{i}] = '{section.use}' failed on a made-up rollout of task {group.task.id}: "
                f"{failure.rstrip('.')}. Fix the reward: in the run it would fail on every rollout."
            )


def untried(settings: RunConfig) -> list[str]:
    """The rewards that cannot be tried before the run, each with what it needs of it, in sentences."""
    built = ((i, s, build_reward(s, f"rewards[{i}]")) for i, s in enumerate(settings.rewards))
    return [
        f"rewards[{i}] = '{section.use}' needs {', '.join(later)} of the run: it was not tried."
        for i, section, reward in built
        if (later := [service for service in _later(reward) if service != JUDGE])
    ]


def _later(reward: Reward) -> list[str]:
    return sorted(set(reward.services) - OFFLINE)


def made_up(settings: RunConfig, task: Task) -> Group:
    """A group as rollout workers make it, with answers in the usual forms; its tokens mean nothing."""
    answer = "" if task.answer is None else task.answer
    texts = [
        answer,
        f"<think>Step by step.</think>\n<answer>{answer}</answer>",
        f"The answer is \\boxed{{{answer}}}.",
        "I do not know.",
    ]
    size = max(2, settings.rollout.group_size)
    rollouts = [
        replace(_rollout(texts[i % len(texts)], settings.rollout.max_turns), variant=variant)
        for variant in settings.rollout.prompt_variants
        for i in range(size)
    ]
    return Group(CLAIM, task, tuple(rollouts))


def _rollout(text: str, turns: int) -> Rollout:
    count = 2 + 3 * min(turns, 2)
    mask = np.arange(count) >= 2
    spoken = tuple(Turn("assistant", 2 + 3 * i, 5 + 3 * i, text) for i in range(min(turns, 2)))
    return Rollout(
        tokens=np.arange(1, count + 1, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        text="\n".join(turn.text for turn in spoken),
        turns=(Turn("user", 0, 2, ""), *spoken),
        spans=(VersionSpan("0.0", 2, count),),
        finish="stop",
        reward=0.0,
    )
