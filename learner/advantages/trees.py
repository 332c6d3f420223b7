"""Advantages of rollouts that share nodes of a search tree: each node against its siblings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import Field

from cluster.types import Rollout, ScoredGroup
from learner.advantages.estimators import GroupAdvantage, TokenAdvantage, spread


class TreeAdvantage(GroupAdvantage, TokenAdvantage):
    """Mean reward of the leaves below a node minus that of its parent, at the node's tokens: baselines by parent.

        A(n) = (R(n) − R(parent n)) / (std of all leaves) / (leaves below n),      R the mean reward of leaves below

    A group's mean assumes independent rollouts, and leaves of a tree are none (arXiv:2402.10184); this baseline, and
    the division by the leaves that hold a copy of the node's tokens, so that a sampled token counts once, are ours.
    Leaves of unknown reward count nowhere. A group without paths is `group`.
    """

    once: bool = Field(default=True)
    """Whether a token that several leaves share counts once in the loss, else once a leaf."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[Float[np.ndarray, " _"]]]:
        return [self._of_group(scored) for scored in groups]

    def _of_group(self, scored: ScoredGroup) -> list[Float[np.ndarray, " _"]]:
        rollouts, rewards = scored.group.rollouts, scored.rewards
        if not any(r.path for r in rollouts):
            return [np.array([a]) for a in self.standard(rewards)]
        unit = spread(rewards, self.eps) if self.normalize_std else 1.0
        means, leaves = node_means(rollouts, rewards)
        result = []
        for rollout, reward in zip(rollouts, rewards, strict=True):
            if not np.isfinite(reward):
                result.append(np.array([np.nan]))
                continue
            found = np.zeros(len(rollout.tokens))
            above, start = means[None], 0
            for node in rollout.path:
                here = means[node.id]
                found[start : node.end] = (here - above) / unit / (leaves[node.id] if self.once else 1)
                above, start = here, node.end
            result.append(np.where(rollout.loss_mask, found, 0.0))
        return result


def node_means(
    rollouts: Sequence[Rollout], rewards: Float[np.ndarray, " G"]
) -> tuple[dict[int | None, float], dict[int | None, int]]:
    """Return the mean reward of the leaves below each node and how many they are, by its id; None is the root.

    Leaves of unknown reward are left out.
    """
    below: dict[int | None, list[float]] = {None: []}
    for rollout, reward in zip(rollouts, rewards, strict=True):
        if np.isfinite(reward):
            for node in (None, *(n.id for n in rollout.path)):
                below.setdefault(node, []).append(float(reward))
    means = {node: float(np.mean(found)) if found else float("nan") for node, found in below.items()}
    return means, {node: len(found) for node, found in below.items()}
