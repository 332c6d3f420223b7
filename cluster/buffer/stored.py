"""What a run's buffer is told of its bounds, and what it hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.types import Group, Scores, decode


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run's groups; the same for all its policies."""

    groups_per_step: int
    max_staleness: int
    when_late: Literal["wait", "drop"] = "wait"
    admit: tuple[str, ...] = ()
    """Signals that must have answered before a group is ready."""
    lease_s: float = 600.0
    score_deadline_s: float = 60.0
    num_tasks: int | None = None
    """The frontier ends here; None is endless."""
    late: tuple[str, ...] = ()
    """Signals that are asked too, until the group is cut; nobody waits for them."""
    members: tuple[str, ...] = ()
    """Policies whose learners train on the same groups, step by step with the one that claims and cuts."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A group as the learner sees it."""

    group: Group
    scores: dict[str, Scores]
    """What has arrived. A signal that has not is absent."""
    overdue: bool
    """Its score deadline has passed."""
    outdated: bool = False
    """What it carries was scored under an older version than the current one of a signal."""


def stored_of(fields: dict[bytes, bytes], wanted: Mapping[bytes, bytes]) -> Stored | None:
    if b"data" not in fields:  # gone since the script named it: another epoch has begun, and the next call will say so
        return None
    scores = {key[2:].decode(): decode(value, Scores) for key, value in fields.items() if key.startswith(b"s:")}
    outdated = any(fields.get(b"carried:" + name, version) != version for name, version in wanted.items())
    return Stored(decode(fields[b"data"], Group), scores, b"overdue" in fields, outdated)
