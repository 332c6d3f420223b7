"""Selectors: what they keep and what they pair, by the numbers of each method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import SelectorSection
from cluster.errors import ConfigError
from cluster.types import Group, GroupReward, Pair, Scores
from rewards.aggregation.selectors import Selection
from rewards.aggregation.selectors.consistency import Consistency, consistency, kendall, spearman
from rewards.aggregation.selectors.pairs import Best, BestWorst, LargeMargin, Likeliest, Neighbours, TokenWeights
from rewards.aggregation.selectors.temporal import Temporal
from tests.rewards.groups import group

NAN = float("nan")


def mixed_of(*rewards: float) -> GroupReward:
    return GroupReward(np.array(rewards, float))


def places(mixed: GroupReward) -> list[tuple[int, int]]:
    assert mixed.pairs is not None
    return [(p.chosen, p.rejected) for p in mixed.pairs]


def of_policies(*names: str) -> Group:
    made = group(*names)
    return replace(made, rollouts=tuple(replace(r, policy=n) for r, n in zip(made.rollouts, names, strict=True)))


def test_best_and_worst_of_what_is_known():
    made = group("a", "b", "c", "d")
    found = BestWorst().select(made, {}, mixed_of(NAN, 3, 1, 3))
    assert found.pairs == (Pair(1, 2, margin=2.0, origin="best_worst"),)
    assert places(BestWorst().select(made, {}, mixed_of(2, 2, NAN, 2))) == []
    assert places(BestWorst().select(made, {}, mixed_of(NAN, NAN, NAN, NAN))) == []
    assert places(BestWorst(min_margin=2.5).select(made, {}, mixed_of(NAN, 3, 1, 3))) == []


def test_a_named_reward_decides_but_not_on_rollouts_that_are_left_out():
    scores = {"judge": Scores.of([9, 1, 2, 3])}
    found = BestWorst(reward="judge").select(group("a", "b", "c", "d"), scores, mixed_of(NAN, 0, 0, 0))
    assert places(found) == [(3, 1)]
    assert places(BestWorst(reward="late").select(group("a", "b"), {}, mixed_of(0, 1))) == []


def test_dno_pairs_of_students_and_a_teacher():
    """arXiv:2404.03715, section 5.1: (g, s1) has a margin of 1, too little for a teacher."""
    made = of_policies("policy", "policy", "policy", "teacher")
    assert set(places(LargeMargin().select(made, {}, mixed_of(5, 3, 4, 6)))) == {(0, 1), (0, 2), (3, 1), (3, 2)}


def test_the_likeliest_rollout_becomes_the_third_of_each_pair():
    made = group("aa", "bb", "cc")
    logprobs = [np.array([0, 0, -2, -2]), np.array([0, 0, -1, -1]), np.array([0, 0, -0.5, -0.5])]
    rollouts = tuple(replace(r, logprobs=x.astype(np.float32)) for r, x in zip(made.rollouts, logprobs, strict=True))
    made = replace(made, rollouts=rollouts)
    paired = replace(mixed_of(1, 0, NAN), pairs=(Pair(0, 1),))
    assert Likeliest().select(made, {}, paired).pairs == (Pair(0, 1, third=1),), "the third rollout is left out"
    assert Likeliest().select(made, {}, mixed_of(1, 0, 0)).pairs is None


def test_token_weights_come_from_a_reward_and_are_bounded():
    scores = {"contrast": replace(Scores.of([0, 0]), tokens=(np.array([0.4, -2.0]), np.array([NAN, 0.1])))}
    found = TokenWeights(reward="contrast").select(group("a", "b"), scores, mixed_of(1, 0)).token_weights
    assert found is not None
    np.testing.assert_array_equal(found[0], [0.4, -0.5])
    np.testing.assert_array_equal(found[1], [NAN, 0.1])
    assert TokenWeights(reward="contrast").select(group("a", "b"), {}, mixed_of(1, 0)).token_weights is None


def test_best_of_n_keeps_the_best():
    found = Best(reward="certainty", count=2).select(
        group("a", "b", "c", "d"), {"certainty": Scores.of([1, 5, None, 3])}, mixed_of(0, 1, 1, 0)
    )
    np.testing.assert_array_equal(found.rewards, [NAN, 1, NAN, 0])
    assert found.pairs is None
    few = Best(count=3).select(group("a", "b", "c"), {}, mixed_of(NAN, 2, NAN))
    np.testing.assert_array_equal(few.rewards, [NAN, 2, NAN])


CURRENT, PREVIOUS = [2.0, 1.0, 3.0, 0.5, 1.5], [1.8, 1.2, 2.5, 0.7, 0.9]


def test_cream_labels_with_the_agreement_of_two_scorers():
    """arXiv:2410.12735: τ = 0.8, c = 0.9, chosen 2, rejected 3."""
    assert kendall(np.array(CURRENT), np.array(PREVIOUS)) == pytest.approx(0.8)
    assert spearman(np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 3, 9])) == pytest.approx(1)
    scores = {"now": Scores.of(CURRENT), "before": Scores.of(PREVIOUS)}
    (pair,) = Consistency(first="now", second="before").select(group(*"abcde"), scores, mixed_of(*[0] * 5)).pairs or ()
    assert (pair.chosen, pair.rejected, pair.margin) == (2, 3, 2.5)
    assert pair.label == pytest.approx(0.9)
    assert consistency(np.array(CURRENT), np.array(PREVIOUS), "top") == 1.0
    assert consistency(np.array(CURRENT), -np.array(PREVIOUS), "top") == 0.0
    assert consistency(np.array(CURRENT), -np.array(PREVIOUS), "kendall") == pytest.approx(0.1)


def test_ordinal_ranks_tell_equals_apart_by_their_order():
    """By hand: ranks (0, 1, 2) of three equals, and (2, 0, 1) of 3, 1, 2; one pair of three in the same order."""
    equal, other = np.array([1.0, 1.0, 1.0]), np.array([3.0, 1.0, 2.0])
    assert np.isnan(consistency(equal, other, "kendall"))
    assert consistency(equal, other, "kendall", "ordinal") == pytest.approx((-1 / 3 + 1) / 2)
    assert consistency(equal, equal, "kendall", "ordinal") == 1.0
    assert consistency(np.array([2.0, 1, 2]), np.array([9.0, 7, 8]), "kendall", "ordinal") == pytest.approx(2 / 3)
    tied = {"now": Scores.of([1, 2, 3]), "before": Scores.of([1, 1, 1])}
    (pair,) = (
        Consistency(first="now", second="before", ranks="ordinal")
        .select(group(*"abc"), tied, mixed_of(0, 0, 0)).pairs or ()
    )  # fmt: skip
    assert pair.label == 1.0
    for a, b in (np.random.default_rng(0).random((2, 6)), np.random.default_rng(1).random((2, 9))):
        for how in ("kendall", "spearman", "top"):
            assert consistency(a, b, how, "ordinal") == pytest.approx(consistency(a, b, how)), "without ties"


@pytest.mark.parametrize(("average", "labels"), [(True, [0.5, 0.5, 0.5]), (False, [1.0, 0.0, 0.5])])
def test_cream_averages_over_the_step_and_a_group_without_ranks_gets_the_mean(average, labels):
    groups = [group(*"abc", seq=i) for i in range(3)]
    scores = [
        {"now": Scores.of([1, 2, 3]), "before": Scores.of(before)} for before in ([1, 2, 3], [3, 2, 1], [1, 1, 1])
    ]
    found = Consistency(first="now", second="before", average=average).of_step(groups, scores, [mixed_of(0, 0, 0)] * 3)
    assert [m.pairs[0].label for m in found if m.pairs] == pytest.approx(labels)


def test_cream_pairs_nothing_where_the_second_scorer_is_silent():
    found = Consistency(first="now", second="before").select(
        group("a", "b"), {"now": Scores.of([1, 2])}, mixed_of(0, 0)
    )
    assert found.pairs == ()


NOW, PAST, FUTURE = ["policy"] * 3, ["initial"] * 3, ["future"] * 3


@pytest.mark.parametrize(
    ("now", "past", "future", "first", "second"),
    [
        ([3, 4, 2], [1, 2, 3], [4.5, 3, 4], [(1, 3)], [(6, 3)]),
        ([3, 5, 2], [3, 3, 3], [5, 5, 5], [(1, 2)], [(1, 2)]),
        ([3, 5, 2], [2, 3, 3], [1, 1, 1], [(1, 2)], [(1, 2)]),
        ([2, 2, 2], [2, 2, 2], [2, 2, 2], [], []),
    ],
)
def test_temporal_pairs_are_anchored_in_the_past(now, past, future, first, second):
    """arXiv:2508.06026: the paper's two sets of pairs, without and with the future's responses."""
    select = Temporal().select
    assert places(select(of_policies(*NOW, *PAST), {}, mixed_of(*now, *past))) == first
    assert places(select(of_policies(*NOW, *PAST, *FUTURE), {}, mixed_of(*now, *past, *future))) == second


def test_selectors_follow_one_another():
    sections = [SelectorSection(use=u) for u in ("best_worst", "likeliest")]
    (found,) = Selection(sections)([group("a", "b")], [{}], [mixed_of(0, 1)])
    assert found.pairs == (Pair(1, 0, margin=1.0, origin="best_worst", third=0),)
    with pytest.raises(ConfigError, match="selectors\\[0\\]"):
        Selection([SelectorSection(use="best_wurst")])


def test_neighbours_are_paired_whatever_their_rewards():
    found = Neighbours().select(group("a", "b", "c", "d", "e", "f"), {}, mixed_of(1, NAN, 0, 1, 1, 0.5))
    assert places(found) == [(0, 2), (3, 4)]
