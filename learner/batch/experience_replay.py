"""Rollouts of earlier steps, trained on once more. Pure; what is kept is a memory (`learner.plugin_state`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cluster.plugins import Plugin
from cluster.types import BatchRecord, Group, Replayed, decode, encode

if TYPE_CHECKING:
    from learner.types import AssembledBatch
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from learner.types import AssembledBatch


class ExperienceReplay(Plugin):
    """Base: `chosen` says what a decided cut trains on beside its groups, `after` what is kept for later."""

    def begin(self) -> Any:
        raise NotImplementedError

    def chosen(self, memory: Any, groups: Sequence[Group], record: BatchRecord) -> tuple[Replayed, ...]:
        raise NotImplementedError

    def after(self, memory: Any, cut: AssembledBatch) -> Any:
        raise NotImplementedError

    def told(self, memory: Any) -> dict[str, float]:
        return {}


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

    def begin(self) -> dict[str, list[Any]]:
        return {"means": [], "kept": []}

    def chosen(
        self, memory: dict[str, list[Any]], groups: Sequence[Group], record: BatchRecord
    ) -> tuple[Replayed, ...]:
        median = baseline(memory["means"])
        recent = [kept for kept in memory["kept"] if record.step - kept["step"] <= self.tolerate_steps]
        good = [kept for kept in recent if kept["reward"] > median]
        count = num_replayed(len(good), self.buffer_size, self.trigger)
        places = np.random.default_rng(record.step).choice(len(good), count, replace=False) if count else ()
        strength = self.scale * (1 - cosine(record.step, self.ramp_steps))
        return tuple(_replayed(good[i], strength * (good[i]["reward"] - median)) for i in sorted(places))

    def after(self, memory: dict[str, list[Any]], cut: AssembledBatch) -> dict[str, list[Any]]:
        past = memory | {"kept": []} if cut.record.replayed else memory
        return self._taken_in(past, cut.groups, cut.record)

    def told(self, memory: dict[str, list[Any]]) -> dict[str, float]:
        told = {"replay/num_kept": float(len(memory["kept"]))}
        return told | ({"replay/baseline": baseline(memory["means"])} if memory["means"] else {})

    def _taken_in(
        self, memory: dict[str, list[Any]], groups: Sequence[Group], record: BatchRecord
    ) -> dict[str, list[Any]]:
        means = [float(r[np.isfinite(r)].mean()) for r in record.rewards if np.isfinite(r).any()]
        kept = [k for k in memory["kept"] if record.step - k["step"] <= self.tolerate_steps]
        for group, rewards, advantages in zip(groups, record.rewards, record.advantages, strict=True):
            for rollout, reward, advantage in zip(group.rollouts, rewards, advantages, strict=True):
                used = not self.event or any(e.text == self.event for e in rollout.events)
                if np.isfinite(reward) and np.mean(advantage) > 0 and used and not rollout.truncated:
                    alone = encode(replace(group, rollouts=(rollout,)))
                    kept.append({"step": record.step, "reward": float(reward), "group": alone})
        return {"means": (memory["means"] + means)[-self.num_means :], "kept": kept}


def baseline(means: Sequence[float]) -> float:
    """P50: the median of the groups' mean rewards."""
    return float(np.median(means)) if len(means) else float("nan")


def num_replayed(num_good: int, buffer_size: int, trigger: float = 1.5) -> int:
    """0 until there are more than `trigger` · `buffer_size`, then a power of two or the buffer's size."""
    return min(buffer_size, 2 ** (num_good.bit_length() - 1)) if num_good > trigger * buffer_size else 0


def _replayed(kept: dict[str, Any], advantage: float) -> Replayed:
    return Replayed(decode(kept["group"], Group), np.array([kept["reward"]]), (np.array([advantage], np.float32),))


REHEARSALS: dict[str, type[ExperienceReplay]] = {"spear": Spear}
"""By name: `learner.rehearsal`. Yours is `package.module:Class`."""


def cosine(step: int, steps: int) -> float:
    """1 at step 0, 0 from `steps` on."""
    return (math.cos(math.pi * min(step, steps) / steps) + 1) / 2
