"""Advantages of rollouts that share nodes: each node against its siblings, each sampled token once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import GroupReward, ScoredGroup, TreeNode
from learner.advantages.trees import TreeAdvantage, node_means
from tests.rewards.groups import group


def scored(rewards) -> ScoredGroup:
    """Four leaves of a tree of two by two; a step is two tokens, the prompt is two."""
    made = group("aabb", "aacc", "ddee", "ddff")
    ways = [(0, 2), (0, 3), (1, 4), (1, 5)]
    rollouts = [
        replace(r, path=(TreeNode(one, 4, "x"), TreeNode(two, 6, "y")))
        for r, (one, two) in zip(made.rollouts, ways, strict=True)
    ]
    return ScoredGroup(replace(made, rollouts=tuple(rollouts)), {}, reward=GroupReward(np.array(rewards, float)))


def test_a_node_is_compared_with_its_siblings():
    (found,) = TreeAdvantage(normalize_std=False, once=False).advantages([scored([1, 0, 0, 0])])
    np.testing.assert_allclose(found[0], [0, 0, 0.25, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(found[1], [0, 0, 0.25, 0.25, -0.5, -0.5])
    np.testing.assert_allclose(found[2], [0, 0, -0.25, -0.25, 0, 0])
    assert sum(a[-1] for a in found) == 0


def test_a_token_that_leaves_share_counts_once():
    (found,) = TreeAdvantage(normalize_std=False).advantages([scored([1, 0, 0, 0])])
    assert found[0][2] + found[1][2] == pytest.approx(0.25)
    assert found[0][4] == 0.5


def test_rewards_are_in_units_of_their_deviation():
    plain, scaled = (TreeAdvantage(eps=0).advantages([scored(np.array([1, 0, 0, 0]) * k)])[0] for k in (1, 100))
    np.testing.assert_allclose(np.concatenate(plain), np.concatenate(scaled))


def test_a_leaf_of_unknown_reward_moves_no_baseline():
    (found,) = TreeAdvantage(normalize_std=False).advantages([scored([1, np.nan, 0, 0])])
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0][2:], [2 / 3, 2 / 3, 0, 0])
    means, leaves = node_means(scored([1, np.nan, 0, 0]).group.rollouts, np.array([1, np.nan, 0, 0]))
    assert (means[0], leaves[0], leaves[None]) == (1.0, 1, 3)


def test_without_a_tree_it_is_the_group_s():
    made = ScoredGroup(group("a", "b"), {}, reward=GroupReward(np.array([1.0, 0.0])))
    (found,) = TreeAdvantage().advantages([made])
    assert np.concatenate(found) == pytest.approx([0.7071, -0.7071], abs=1e-3)
