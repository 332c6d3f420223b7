"""What a shaper is: a pure transform of one reward's scores, applied when a batch is assembled. Stored scores stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cluster.errors import ConfigError
from cluster.plugins import Plugin
from cluster.types import Group


class Shaper(Plugin):
    """Base of shapers: one method, from the scores of one reward to what is weighed and added up.

    Unknown (NaN) stays unknown; what can be shaped only by knowing more than the group tells becomes unknown. A shaper
    that needs scores of earlier steps is a `cluster.plugins.StatefulPlugin` too, and its method has the parameter
    `state`; its `update(state, values)` is given the scores [N] of the reward that a step trained on.
    """

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        """Shape the scores of one group, one for each rollout."""
        raise NotImplementedError


class StepShaper(Shaper):
    """Base of shapers that compare groups: `shape` is called with all groups that a step could train on."""

    def shape(
        self, values_G: Sequence[Float[np.ndarray, " G"]], groups: Sequence[Group]
    ) -> Sequence[Float[np.ndarray, " G"]]:
        """Shape the scores of all groups, before any is dropped; groups may differ in size."""
        raise NotImplementedError


class TokenShaper(Shaper):
    """Base of shapers of token scores: `shape` is called with those of a group's rollouts."""

    def shape(self, tokens_G: Sequence[Float[np.ndarray, " T"]], group: Group) -> Sequence[Float[np.ndarray, " T"]]:
        """Return the reward that comes at each token of each rollout, from its token scores (NaN where there is
        none)."""
        raise NotImplementedError


def reference_scores(group: Group, path: str) -> Float[np.ndarray, " M"]:
    """The scores of reference responses that the task brings along in `meta` at the dotted `path`; perhaps none.

    Raises ConfigError if what stands there is no number and no list of numbers.
    """
    found: Any = group.task.meta
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    listed = found if isinstance(found, list | tuple) else [] if found is None else [found]
    if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in listed):
        raise ConfigError(
            f"task {group.task.id}: '{path}' is {found!r:.80}; scores of reference responses are a list of numbers. "
            "Fix the data, or the shaper's option 'references'."
        )
    scores = np.array([np.nan if v is None else v for v in listed], np.float64)
    return scores[np.isfinite(scores)]
