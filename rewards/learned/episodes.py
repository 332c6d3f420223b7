"""Episodes as the steps that a step reward is learnt for: what was seen, what was done, where it ends. Pure.

A step is a turn of the policy with the observation before it. A chain of rollouts has the steps of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cluster.types import Event, Group
from rewards.learned.labels import BETWEEN

STEP = "\x1e"
"""Stands between the steps of an episode in the key of a label."""
NAMED = "\x1d"
"""Stands behind the name of an episode, where equal steps may come to different outcomes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the policy."""

    rollout: int
    """Place of its rollout in the group."""
    end: int
    """Place of the turn's last token in the rollout."""
    seen: str
    """The observation before the turn."""
    done: str
    """What the policy wrote."""
    events: tuple[Event, ...]
    """What the turn brought about."""

    @property
    def text(self) -> str:
        """Observation and turn; separators of label keys in them become U+FFFD."""
        text = f"{self.seen}\n> {self.done}"
        return text.replace(STEP, "\N{REPLACEMENT CHARACTER}").replace(BETWEEN, "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, slots=True)
class Episode:
    """The steps of one rollout, or of a chain of rollouts in their order."""

    rollouts: tuple[int, ...]
    """Places of its rollouts in the group."""
    steps: tuple[Step, ...]

    @property
    def key(self) -> str:
        """Return the key of a label of what the episode came to, where equal texts have equal outcomes."""
        return STEP.join(step.text for step in self.steps)

    @property
    def prefixes(self) -> list[str]:
        """Return what had happened when each step ended, the step included."""
        texts = [step.text for step in self.steps]
        return [STEP.join(texts[: k + 1]) for k in range(len(texts))]


def episodes_of(group: Group) -> list[Episode]:
    """Return the episodes of a group in the order of their first rollouts; a rollout without turns has no step."""
    members: dict[object, list[int]] = {}
    for i, r in enumerate(group.rollouts):
        members.setdefault((r.variant, r.policy, r.agent, r.episode) if r.chained else i, []).append(i)
    return [Episode(tuple(at), tuple(s for i in at for s in _steps(group, i))) for at in members.values()]


def _steps(group: Group, place: int) -> list[Step]:
    rollout, seen, found = group.rollouts[place], "", list[Step]()
    for turn in rollout.turns:
        if turn.role != "assistant":
            seen = turn.text
        elif turn.end > turn.start:
            events = tuple(e for e in rollout.events if e.turn == len(found))
            found.append(Step(place, turn.end - 1, seen, turn.text, events))
    return found


def at_step_ends(
    group: Group, episodes: Sequence[Episode], rewards: Sequence[Float[np.ndarray, " K"]]
) -> tuple[Float[np.ndarray, " T"], ...]:
    """Return each step's reward at the turn's last token, per rollout; 0 elsewhere."""
    tokens = tuple(np.zeros(len(r.tokens)) for r in group.rollouts)
    for episode, values in zip(episodes, rewards, strict=True):
        for step, value in zip(episode.steps, values, strict=True):
            tokens[step.rollout][step.end] += value
    return tokens
