"""What a monitor is: it reads the rows of metrics as they come and may raise an alarm. It never touches a gradient.

step's groups, scores, rewards ─► measure ─► row of metrics ─► observe ─► alarm
  where the batch is assembled                  driver ─► report ─► another row
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.plugins import Plugin
from cluster.types import Group, GroupReward, Scores

Row = Mapping[str, float | None]
"""Metrics of one step by name; several rows may share a step, and None is what metrics.jsonl writes for NaN."""


@dataclass(frozen=True, slots=True)
class Alarm:
    monitor: str
    step: int
    metric: str
    """The metric that gave it away."""
    message: str
    """What was seen, and what to do."""
    good: int = 0
    """The last step at which nothing was amiss; 0 is the initial model."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A group that a step could train on, what was said of it and what that is worth."""

    group: Group
    scores: Mapping[str, Scores]
    mixed: GroupReward


class Monitor(Plugin):
    """Base of monitors. Its fields are its options; its state is nothing but the rows it has seen.

    After a resume it is fed the rows of metrics.jsonl that survived, and is where it was.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the metrics without which it is blind."""
        return ()

    def measure(self, judged: Sequence[Judged]) -> Mapping[str, float]:
        """Metrics of the step's groups, NaN where they tell nothing; recorded with the step. Keeps no state: it is
        called where the batch is assembled, in another process than `observe`."""
        return {}

    def observe(self, step: int, row: Row) -> Alarm | None:
        """One row, in order of step."""
        return None

    def report(self) -> Mapping[str, float]:
        """What it has worked out from the rows since it was last asked, as metrics of its own."""
        return {}


def known(row: Row, name: str) -> float | None:
    """The value, unless it is missing or not finite."""
    value = row.get(name)
    return value if value is not None and math.isfinite(value) else None
