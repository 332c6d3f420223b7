"""What a run's buffer is told of its bounds, and what it hands out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from cluster.errors import DataError
from cluster.types import Group, Scores, decode
from cluster.types.validation import fitting_scores

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A group's part in the deaths of reward workers."""

    trial: str = ""
    """The one reward to ask now, since the group is suspected; all rewards where it is empty."""
    condemned: Mapping[str, str] = field(default_factory=dict)
    """Reward that is not to be asked about this group → the workers that died over it, in words."""


def suspicion_of(trial: bytes, condemned: bytes) -> Suspicion:
    """Return what the script `forsake` has written into these fields of a group."""
    lines = [line.split("\0") for line in condemned.decode().split("\n") if line]
    return Suspicion(trial.decode(), {name: " and ".join(filter(None, workers)) for name, *workers in lines})


def stored_of(fields: dict[bytes, bytes], wanted: Mapping[bytes, bytes]) -> Stored | None:
    """Return the group that Redis holds in these fields, or None where it is gone.

    Raises msgspec.ValidationError if the group cannot be read. Scores that cannot, or that do not fit the group, are
    left out with a warning: the signal has not answered.
    """
    if b"data" not in fields:  # gone since the script named it: another epoch has begun, and the next call will say so
        return None
    group = decode(fields[b"data"], Group)
    outdated = any(fields.get(b"carried:" + name, version) != version for name, version in wanted.items())
    return Stored(group, scores_of(fields, group), b"overdue" in fields, outdated)


def scores_of(fields: Mapping[bytes, bytes], group: Group) -> dict[str, Scores]:
    """The scores that a group carries, by signal, as far as they can be read."""
    found = {}
    for key, value in fields.items():
        if key.startswith(b"s:"):
            name = key[2:].decode()
            try:
                found[name] = fitting_scores(decode(value, Scores), group)
            except (msgspec.ValidationError, DataError) as error:
                log.warning("the scores of '%s' on group %s cannot be read and are left out: %s", name, group.id, error)
    return found
