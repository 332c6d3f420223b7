"""Pairs of leaves of a tree of responses, by how much they have in common (arXiv:2402.10184)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from cluster.types import Group, GroupReward, Rollout, Scores
from rewards.aggregation.preferences import pairs_of
from rewards.aggregation.selectors.base import Selector, values_of, with_pairs


class LeafPairs(Selector):
    """Pairs of leaves, the better one chosen, drawn evenly from the depths of their lowest common ancestors.

    Tree-structured preference data (arXiv:2402.10184): leaves are compared with leaves that share a prefix with them.
    Leaves of equal text, and of equal scores, are no pair. Which depths the paper draws from is unverified.
    """

    reward: str = ""
    """Name of the reward whose scores decide, by default the mixed reward."""
    depths: tuple[NonNegativeInt, ...] = ()
    """Depths that pairs are drawn from, 0 being the root; by default all."""
    pairs: PositiveInt | None = None
    """Pairs of a group; by default all there are."""
    min_margin: NonNegativeFloat = 0.0
    """What the better one must be better by."""
    reward_fields: ClassVar[tuple[str, ...]] = ("reward",)

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        values = values_of(self.reward, scores, mixed)
        at_depth = leaf_pairs(group.rollouts)
        usable = {
            depth: [
                (i, j) if values[i] > values[j] else (j, i)
                for i, j in found
                if abs(values[i] - values[j]) > 0 and abs(values[i] - values[j]) >= self.min_margin
            ]
            for depth, found in at_depth.items()
            if not self.depths or depth in self.depths
        }
        drawn = drawn_evenly(usable, self.pairs, random.Random(group.id))
        return with_pairs(mixed, pairs_of(drawn, values, "leaf_pairs"))


def common_depth(one: Rollout, other: Rollout) -> int:
    """Return the depth of the lowest common ancestor of two leaves: nodes that their paths share; 0 is the root."""
    depth = 0
    for a, b in zip(one.path, other.path, strict=False):
        if a.id != b.id:
            break
        depth += 1
    return depth


def leaf_pairs(rollouts: Sequence[Rollout]) -> dict[int, list[tuple[int, int]]]:
    """Return the places of all pairs of leaves with different texts, by the depth of their lowest common ancestor."""
    found: dict[int, list[tuple[int, int]]] = {}
    for i, j in combinations(range(len(rollouts)), 2):
        one, other = rollouts[i], rollouts[j]
        if one.path and other.path and one.text != other.text:
            found.setdefault(common_depth(one, other), []).append((i, j))
    return dict(sorted(found.items()))


def drawn_evenly(
    at_depth: Mapping[int, Sequence[tuple[int, int]]], count: int | None, rng: random.Random
) -> list[tuple[int, int]]:
    """Return at most `count` pairs, one depth after the other while they last."""
    left = {depth: rng.sample(list(pairs), len(pairs)) for depth, pairs in at_depth.items() if pairs}
    drawn: list[tuple[int, int]] = []
    while left and (count is None or len(drawn) < count):
        for depth in sorted(left):
            if count is not None and len(drawn) == count:
                break
            drawn.append(left[depth].pop())
        left = {depth: pairs for depth, pairs in left.items() if pairs}
    return drawn
