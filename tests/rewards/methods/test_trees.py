"""Trees of rollouts: pairs of leaves (arXiv:2402.10184), values that a tree makes (ReST-MCTS*, arXiv:2406.03816)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cluster.types import ABSTAINED, FAILED, SCORED, Group, GroupReward, TreeNode
from rewards.aggregation.selectors.leaf_pairs import LeafPairs, common_depth, drawn_evenly, leaf_pairs
from rewards.base import Services
from rewards.learned.client import RewardModelClient
from rewards.learned.episodes import NAMED
from rewards.learned.labels import MemoryLabels
from rewards.learned.publishing import MemoryBoard
from rewards.learned.quality_values import QualityValue, ReStMcts, TreeValue, prefixes, quality_values
from rewards.learned.reward_model import TreeReward
from tests.rewards.groups import group, rollout


def grown(*ways: str, answers=()) -> Group:
    """A group whose rollouts are paths of one-letter steps; equal beginnings are equal nodes."""
    ids = {begin: n for n, begin in enumerate(dict.fromkeys(w[:k] for w in ways for k in range(1, len(w) + 1)))}
    made = group(*ways)
    rollouts = [
        replace(r, path=tuple(TreeNode(ids[w[: k + 1]], k + 3, w[k]) for k in range(len(w))), answer=w[-1])
        for r, w in zip(made.rollouts, ways, strict=True)
    ]
    return replace(made, rollouts=tuple(rollouts))


LEAVES = tuple(map("".join, product("ab", repeat=3)))


def test_eight_leaves_have_28_pairs_by_the_depth_at_which_they_part():
    found = leaf_pairs(grown(*LEAVES).rollouts)
    assert {depth: len(pairs) for depth, pairs in found.items()} == {0: 16, 1: 8, 2: 4}
    assert common_depth(*grown("aab", "aba").rollouts) == 1


def test_leaves_of_equal_text_or_without_a_path_are_no_pair():
    made = grown("ab", "ac")
    equal = replace(made, rollouts=tuple(replace(r, text="same") for r in made.rollouts))
    assert leaf_pairs(equal.rollouts) == {}
    assert leaf_pairs(group("a", "b").rollouts) == {}


def test_pairs_are_drawn_evenly_from_the_depths():
    at_depth = leaf_pairs(grown(*LEAVES).rollouts)
    depth_of = {pair: depth for depth, pairs in at_depth.items() for pair in pairs}
    for count, expected in ((6, {0: 2, 1: 2, 2: 2}), (14, {0: 5, 1: 5, 2: 4}), (None, {0: 16, 1: 8, 2: 4})):
        drawn = drawn_evenly(at_depth, count, random.Random(0))
        assert Counter(depth_of[pair] for pair in drawn) == expected
        assert len(set(drawn)) == len(drawn)


def test_the_better_leaf_is_chosen_and_ties_are_no_pair():
    made = grown(*LEAVES)
    rewards = GroupReward(np.array([0, 1, 2, 2, np.nan, 5, 5, 5.0]))
    found = LeafPairs(depths=(2,)).select(made, {}, rewards).pairs
    assert found is not None
    assert [(p.chosen, p.rejected, p.margin) for p in found] == [(1, 0, 1.0)]
    assert len(LeafPairs(min_margin=4.0).select(made, {}, rewards).pairs or ()) == 6
    assert len(LeafPairs(pairs=2).select(made, {}, rewards).pairs or ()) == 2


def test_a_judge_is_asked_about_leaves_that_share_a_prefix():
    made = grown(*LEAVES)
    texts = [r.text for r in made.rollouts]
    drawn = TreeReward(model="m", pairs=6).drawn(made, texts)
    by_depth = {frozenset((texts[i], texts[j])): d for d, found in leaf_pairs(made.rollouts).items() for i, j in found}
    assert Counter(by_depth[frozenset(two)] for two in drawn) == {0: 2, 1: 2, 2: 2}
    assert len(TreeReward(model="m", pairs=6).drawn(group("x", "y"), ["x", "y"])) == 1, "a group without a tree"


# ── ReST-MCTS* ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_values_of_the_catalogue():
    """A right way of three steps, and a wrong sibling of the second: its ancestor is two steps from the answer."""
    values = quality_values([[1, 2, 3], [1, 4]], [True, False])
    assert [values[n] for n in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0], abs=1e-6)
    assert values[4] == pytest.approx(0.111111, abs=1e-6)


def test_a_tree_without_a_right_end_has_no_values_and_a_shorter_way_counts():
    assert quality_values([[1, 2], [3]], [False, False]) == {}
    values = quality_values([[1, 2, 3], [1, 4], [5]], [True, True, False])
    assert values[1] == pytest.approx(1 / 2), "one step remains on the shorter way"
    assert values[4] == 1.0
    assert values[5] == 0.0, "it is never below 0"
    deep = quality_values([[1, 2], [1, 3, 4, 5]], [True, False])
    assert deep[3] == pytest.approx(0.5 - 0.5 / 2)
    assert deep[4] == deep[5] == 0.0


class Told(MemoryLabels):
    def __init__(self):
        super().__init__()
        self.labels = {}

    def add(self, labels):
        self.labels |= {key: label.value for key, label in labels.items()}


def client_of(model: QualityValue | None = None, labels=None) -> RewardModelClient:
    client = RewardModelClient(
        "quality_value", "quality_value", QualityValue, labels=labels or Told(), board=MemoryBoard()
    )
    if model is not None:
        client._model = model
    return client


async def test_a_group_tells_its_tree_s_values_and_scores_right_traces():
    made, told = grown("abc", "abd", "ae"), Told()
    made = replace(made, task=replace(made.task, answer="c"))
    services = Services(reward_models={"quality_value": client_of(labels=told)})
    try:
        scores = await ReStMcts(outcome="exact").score(made, services)
        short = await ReStMcts(outcome="exact", least_steps=4).score(made, services)
    finally:
        services.close()
    assert scores.values.tolist() == [1.0, 0.0, 0.0], "before a first version every right trace counts whole"
    assert short.values.tolist() == [0.0, 0.0, 0.0]
    texts = {key.partition(NAMED)[2].partition("> ")[2]: value for key, value in told.labels.items()}
    expected = {"a": 1 / 3, "ab": 2 / 3, "abc": 1.0, "abd": 2 / 3 - 1 / 3 / 2, "ae": 1 / 3 - 2 / 3 / 3}
    assert texts == pytest.approx(expected)
    assert all(key.startswith(f"{made.id}{NAMED}47+38=\n> ") for key in told.labels)


async def test_the_critic_reads_what_the_labels_were_told_of():
    made = grown("ab", "ac")
    assert prefixes("p", made.rollouts[0]) == ["p\n> a", "p\n> ab"]
    services = Services(reward_models={"quality_value": client_of()})
    try:
        unknown = await TreeValue().score(made, services)
        mixed = replace(made, rollouts=(*made.rollouts, rollout("no path")))
        states = (await TreeValue().score(mixed, services)).state
    finally:
        services.close()
    assert unknown.state.tolist() == [FAILED, FAILED], "no version is published"
    assert states.tolist() == [FAILED, FAILED, ABSTAINED]


async def test_a_value_model_learns_which_beginnings_lead_to_a_right_end():
    """Planted: a beginning with x is worth 1, others 0.2; trees name their labels."""
    rng = random.Random(0)
    texts = ["".join(rng.choice("xyz") for _ in range(3)) for _ in range(30)]
    keys = [f"policy/1/{i}{NAMED}sum\n> {t}" for i, t in enumerate(texts)]
    values = np.array([1.0 if t[0] == "x" else 0.2 for t in texts])
    model = QualityValue(early_steps=60, lr=3e-3)
    model.fit(keys, values)
    assert model.agreement(keys, values) > 0.9
    found = model.predict([f"sum\n> {t}" for t in ("xyz", "yzz")])
    assert found[0] > found[1] + 0.05
    assert ((found >= 0) & (found <= 1)).all()
    services = Services(reward_models={"quality_value": client_of(model)})
    try:
        scores = await TreeValue().score(grown("xy", "zz"), services)
    finally:
        services.close()
    assert (scores.state == SCORED).all()
