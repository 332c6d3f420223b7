"""Rollouts of earlier steps, trained on once more. Pure; what is kept is a state (`learner.plugin_state`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cluster.plugins import StatefulPlugin
from cluster.types import AssembledBatch, BatchRecord, Group, Replayed, decode, encode


class ExperienceReplay(StatefulPlugin):
    """Base: `chosen` says what a decided batch trains on beside its groups, `update` what is kept for later."""

    def chosen(self, state: Any, groups: Sequence[Group], record: BatchRecord) -> tuple[Replayed, ...]:
        raise NotImplementedError


class Spear(ExperienceReplay):
    """Self-imitation of the policy's own good rollouts (SPEAR, arXiv:2509.22601, by its released code).

    The buffer holds rollouts of earlier steps only. A step first draws from the buffer and is added to it afterwards,
    so that no rollout is replayed beside itself. P50 is the median of the mean rewards of at most `num_means` groups of
    earlier steps. If more than `trigger` · `buffer_size` rollouts that are at most `tolerate_steps` old have a reward
    R > P50, the step trains once more on min(`buffer_size`, the largest power of two that is no larger than their
    number) of them, drawn evenly, and the buffer is emptied. The advantage of a replayed rollout is R − P50, without
    a deviation, times `scale` · (1 − cos(π · min(step, S) / S)) / 2: imitation grows as the policy improves. After the
    step its rollouts that have a positive advantage, are not truncated, and use tools if `event` is set, join the
    buffer. The released code gives replays an optimizer step of their own; here they are part of the step's batch and
    count by their tokens. Replayed rollouts are stale: set `learner.loss.staleness`.
    """

    buffer_size: PositiveInt = 2048
    """Most rollouts that one step replays, and the size that `trigger` multiplies."""
    trigger: PositiveFloat = 1.5
    """A replay begins with more than this times `buffer_size` good rollouts."""
    num_means: PositiveInt = 10_240
    """Groups of earlier steps whose mean rewards give the median P50."""
    tolerate_steps: int = Field(default=5, ge=1, le=10)
    """Steps after which a rollout is too old to be replayed."""
    scale: NonNegativeFloat = 1.0
    """c; 0.001 in the code's default settings, 1 in its scripts."""
    ramp_steps: PositiveInt = 200
    """S: steps until replays have their full strength; 100 to 300."""
    event: str = ""
    """Name of the environment's event that a rollout must have to be kept, such as `call`; any rollout by default."""

    def init_state(self) -> dict[str, list[Any]]:
        return {"means": [], "kept": []}

    def chosen(self, state: dict[str, list[Any]], groups: Sequence[Group], record: BatchRecord) -> tuple[Replayed, ...]:
        median = baseline(state["means"])
        recent = [kept for kept in state["kept"] if record.step - kept["step"] <= self.tolerate_steps]
        good = [kept for kept in recent if kept["reward"] > median]
        count = num_replayed(len(good), self.buffer_size, self.trigger)
        places = np.random.default_rng(record.step).choice(len(good), count, replace=False) if count else ()
        strength = self.scale * (1 - cosine(record.step, self.ramp_steps))
        return tuple(_replayed(good[i], strength * (good[i]["reward"] - median)) for i in sorted(places))

    def update(self, state: dict[str, list[Any]], batch: AssembledBatch) -> dict[str, list[Any]]:
        past = state | {"kept": []} if batch.record.replayed else state
        return self._taken_in(past, batch.groups, batch.record)

    def metrics(self, state: dict[str, list[Any]]) -> dict[str, float]:
        told = {"replay/num_kept": float(len(state["kept"]))}
        return told | ({"replay/baseline": baseline(state["means"])} if state["means"] else {})

    def _taken_in(
        self, state: dict[str, list[Any]], groups: Sequence[Group], record: BatchRecord
    ) -> dict[str, list[Any]]:
        means = [float(r[np.isfinite(r)].mean()) for r in record.rewards if np.isfinite(r).any()]
        kept = [k for k in state["kept"] if record.step - k["step"] <= self.tolerate_steps]
        for group, rewards, advantages in zip(groups, record.rewards, record.advantages, strict=True):
            for rollout, reward, advantage in zip(group.rollouts, rewards, advantages, strict=True):
                used = not self.event or any(e.text == self.event for e in rollout.events)
                if np.isfinite(reward) and np.mean(advantage) > 0 and used and not rollout.truncated:
                    alone = encode(replace(group, rollouts=(rollout,)))
                    kept.append({"step": record.step, "reward": float(reward), "group": alone})
        return {"means": (state["means"] + means)[-self.num_means :], "kept": kept}


def baseline(means: Sequence[float]) -> float:
    """P50: the median of the groups' mean rewards."""
    return float(np.median(means)) if len(means) else float("nan")


def num_replayed(num_good: int, buffer_size: int, trigger: float = 1.5) -> int:
    """0 until there are more than `trigger` · `buffer_size`, then a power of two or the buffer's size."""
    return min(buffer_size, 2 ** (num_good.bit_length() - 1)) if num_good > trigger * buffer_size else 0


def _replayed(kept: dict[str, Any], advantage: float) -> Replayed:
    return Replayed(decode(kept["group"], Group), np.array([kept["reward"]]), (np.array([advantage], np.float32),))


REPLAYS: dict[str, type[ExperienceReplay]] = {"spear": Spear}
"""By name: `learner.experience_replay`. Yours is `package.module:Class`."""


def cosine(step: int, steps: int) -> float:
    """1 at step 0, 0 from `steps` on."""
    return (math.cos(math.pi * min(step, steps) / steps) + 1) / 2
