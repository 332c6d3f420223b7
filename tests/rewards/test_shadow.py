"""What a shadow reward would have changed, in figures that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import RewardSection
from cluster.types import Scores
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.shadow_metrics import agreement, sign_flip_frac
from tests.rewards.groups import group

NAN = float("nan")


def of(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("shadow", "trained", "expected"),
    [
        (of(1, 2, 3), of(10, 20, 30), 1.0),
        (of(3, 2, 1), of(10, 20, 30), -1.0),
        (of(1, 3, 2), of(1, 2, 3), 1 / 3),  # two pairs in order, one reversed
        (of(0.2, 0.7, 0.3, 0.9), of(0, 1, 0, 1), 1.0),  # binary: the two ties of the trained reward do not count
        (of(1, 1, 1), of(1, 2, 3), 0.0),  # no opinion
        (of(1, 1, 2), of(1, 2, 3), 2 / 3),  # one tie of three
        (of(NAN, 1, 2), of(9, 1, 2), 1.0),
        (of(5, 1, 2), of(NAN, 1, 2), 1.0),
        (of(1, 2, 3), of(4, 4, 4), NAN),  # nothing is told apart
        (of(NAN, NAN, 1), of(1, 2, 3), NAN),
        (of(), of(), NAN),
    ],
)
def test_agreement(shadow, trained, expected):
    assert agreement(shadow, trained) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("shadow", "trained", "expected"),
    [
        (of(1, 2, 3), of(10, 20, 30), 0.0),
        (of(3, 2, 1), of(10, 20, 30), 2 / 3),  # the middle one has no advantage either way
        (of(0, 0, 0, 4), of(0, 1, 1, 2), 0.0),  # mean 1 and 1: −,−,−,+ against −,0,0,+
        (of(0, 3, 0, 1), of(0, 0, 4, 4), 0.5),  # −,+,−,0 against −,−,+,+
        (of(0.1, 0.1, 0.1), of(0, 1, 2), 0.0),  # a mean that rounding moves is no opinion
        (of(NAN, 1, 2), of(9, 1, 2), 0.5),  # trained on the mean of three, 4: the last would be pushed up
        (of(NAN, NAN), of(1, 2), NAN),
        (of(), of(), NAN),
    ],
)
def test_sign_flips(shadow, trained, expected):
    assert sign_flip_frac(shadow, trained) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=8), st.integers(1, 5))
def test_only_order_and_sign_count(pairs, factor):
    shadow, trained = of(*(a for a, _ in pairs)), of(*(b for _, b in pairs))
    for figure in (agreement, sign_flip_frac):
        base = figure(shadow, trained)
        assert figure(factor * shadow + 3, trained) == pytest.approx(base, nan_ok=True)
        assert figure(shadow, factor * trained - 2) == pytest.approx(base, nan_ok=True)
    assert agreement(-shadow, trained) == pytest.approx(-agreement(shadow, trained), nan_ok=True)
    assert agreement(trained, trained) == pytest.approx(1.0 if np.ptp(trained) else NAN, nan_ok=True)
    assert sign_flip_frac(trained, trained) == 0.0


def test_a_shadow_is_compared_and_changes_nothing():
    four = group("a", "b", "c", "d")
    trained, shadow = Scores.of([1.0, 0.0, 1.0, 0.0]), Scores.of([0.0, 1.0, None, 0.5])
    sections = [RewardSection(use="exact", name="x"), RewardSection(use="exact", name="y", weight=0.0)]
    alone = Mixer(sections[:1], ["x"], 2)(four, {"x": trained})
    both = Mixer(sections, ["x", "y"], 2)(four, {"x": trained, "y": shadow})
    assert (both.rewards.tolist(), both.drop) == (alone.rewards.tolist(), None)
    # Of the pairs told apart, (a, b) and (a, d) are reversed; c is unknown. a: − for +, b: + for −, d: 0.
    assert both.metrics["reward/y_agreement"] == -1.0
    assert both.metrics["reward/y_sign_flip_frac"] == pytest.approx(2 / 3)
    assert "reward/x_agreement" not in both.metrics
    nothing = Mixer(sections, ["x", "y"], 2)(four, {"x": trained})
    assert np.isnan(nothing.metrics["reward/y_agreement"])
