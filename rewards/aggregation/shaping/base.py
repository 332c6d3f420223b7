"""What a shaper is: a pure transform of one signal's scores, applied when a batch is cut. The stored score stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from cluster.errors import ConfigError
from cluster.plugins import Plugin
from cluster.types import Group


class Shaper(Plugin):
    """Base of shapers: scores [G] of one signal → what the mixer weighs and adds up, [G], or `of_step` for all groups.

    Unknown (NaN) stays unknown; what can be shaped only by knowing more than the group tells becomes unknown.
    """

    token_level: ClassVar[bool] = False
    """Whether it shapes a signal's token values (`shape_group`) instead of one value per rollout."""

    def shape_group(
        self, tokens_G: Sequence[Float[np.ndarray, " T"]], group: Group
    ) -> Sequence[Float[np.ndarray, " T"]]:
        """Shape the token scores of a group; override to use more of the rollouts than their scores."""
        return [self.shape_tokens(tokens) for tokens in tokens_G]

    def shape_tokens(self, tokens: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Return the reward that comes at each token of one rollout, from its token scores (NaN where there is
        none)."""
        raise NotImplementedError

    def memory(self, reward: str) -> Any:
        """State from earlier steps, a `cluster.plugins.StatefulPlugin` kept in checkpoints; by default none."""
        return None

    def recalling(self, memory: Any) -> Shaper:
        """Return the shaper with the state that it had before a step."""
        return self

    def shape(self, values: Float[np.ndarray, " G"], group: Group) -> Float[np.ndarray, " G"]:
        """Shape the scores of one group, by its own scores alone."""
        raise NotImplementedError

    def of_step(
        self, values_G: Sequence[Float[np.ndarray, " G"]], groups: Sequence[Group]
    ) -> list[Float[np.ndarray, " G"]]:
        """Shape the scores of all groups that a step could train on, before any is dropped; groups may differ in
        size."""
        return [self.shape(values, group) for values, group in zip(values_G, groups, strict=True)]


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
