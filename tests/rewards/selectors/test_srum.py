"""Weights of regions: the numbers of SRUM's check (arXiv:2510.12784), on its map and on the tokens of a text."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.types import GroupReward, Scores
from rewards.aggregation.selectors.srum import Srum, score_map
from tests.rewards.groups import group

NAN = float("nan")


def test_the_map_of_the_catalogue():
    regions = [(((0, 2), (0, 2)), 0.8), (((1, 3), (1, 3)), -0.6), (((3, 3), (0, 4)), 1.0), (((4, 2), (0, 4)), 1.0)]
    found = score_map((4, 4), regions, 0.5)
    expected = np.full((4, 4), 0.375)
    expected[:2, :2] = 0.675
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.mean() == pytest.approx(0.45, abs=1e-12)
    own, anchor = (found * 1.0).mean(), 0.25
    assert own + 0.5 * anchor == pytest.approx(0.575, abs=1e-12)
    assert score_map((2,), [], 0.5).tolist() == [0.375, 0.375]


def test_spans_end_at_scored_tokens_and_unknown_rollouts_are_left_out():
    made = group("abcd", "abcd", "abcd")
    n = len(made.rollouts[0].tokens)
    own = np.flatnonzero(made.rollouts[0].loss_mask)
    spans = np.full(n, NAN)
    spans[own[1]], spans[own[2]] = 0.9, 0.2
    scores = {
        "steps": Scores.of([0.5, 0.5, NAN]), "judge": Scores.of([0.75, NAN, 0.75]),
    }  # fmt: skip
    scores["steps"] = Scores(scores["steps"].values, scores["steps"].state, (), "0", (spans, spans, np.full(n, NAN)))
    found = Srum(spans="steps", whole="judge").select(made, scores, GroupReward(np.zeros(3)))
    assert np.isfinite(found.rewards).tolist() == [True, False, False]
    assert found.token_weights is not None
    weights = found.token_weights[0]
    assert weights[own[0]] == weights[own[1]] == pytest.approx(0.9 * 0.75)
    assert weights[own[2]] == pytest.approx(0.5 * 0.75), "a bad span is not below one half"
    assert weights[own[3]] == pytest.approx(0.5 * 0.75)
    assert not weights[~made.rollouts[0].loss_mask].any()


def test_without_scores_nothing_is_trained_on():
    found = Srum(spans="steps", whole="judge").select(group("a", "b"), {}, GroupReward(np.zeros(2)))
    assert np.isnan(found.rewards).all()
