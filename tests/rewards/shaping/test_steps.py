"""Step rewards that cannot be farmed: the numbers of Clip and Delta (arXiv:2410.15115)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.aggregation.shaping import TokenShaper
from rewards.aggregation.shaping.steps import ClipDelta, clipped_steps, returns_to_go, step_deltas, token_rewards
from tests.rewards.groups import group

Q = np.array([0.9, 0.8, 0.3, 0.95])
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_clip_delta_and_both():
    assert clipped_steps(Q, 0.5) == pytest.approx([0, 0, -0.2, 0])
    assert step_deltas(Q) == pytest.approx([0.1, 0.5, 0.3, 0])
    assert returns_to_go(step_deltas(Q)) == pytest.approx([0.9, 0.8, 0.3, 0])
    both = step_deltas(clipped_steps(Q, 0.5))
    assert both == pytest.approx([0, 0.2, -0.2, 0])
    assert returns_to_go(both) == pytest.approx([0, 0, -0.2, 0])


def test_repeating_a_good_step_earns_nothing():
    repeated = np.full(50, 0.9)
    assert repeated.sum() == pytest.approx(45)
    assert step_deltas(repeated).sum() == pytest.approx(0.9)
    assert clipped_steps(repeated).sum() == 0


@given(SCORES, st.booleans())
def test_what_is_to_come_is_bounded_by_the_steps_own_score(scores, success):
    u = np.array(scores)
    ends = np.arange(1, len(u) + 1) * 3
    to_go = returns_to_go(token_rewards(step_deltas(u), ends, int(ends[-1]) + 2, success=float(success), alpha=0.1))
    assert to_go[ends[:-1] - 1] == pytest.approx(0.1 * u[:-1] + success)
    assert to_go[ends[-1] - 1] == pytest.approx(float(success))


def test_a_step_is_rewarded_on_its_last_token():
    found = token_rewards(np.array([1.0, -2.0]), [2, 5], 5, success=1.0, alpha=0.5)
    assert found.tolist() == [0, 0.5, 0, 0, 0.0]
    assert token_rewards(np.array([]), [], 2, success=1.0).tolist() == [0, 1]
    assert step_deltas(np.array([])).tolist() == []
    for ends in ([0, 5], [3, 3], [3, 6], [3]):
        with pytest.raises(ValueError, match="one ascending end per step"):
            token_rewards(np.array([1.0, -2.0]), ends, 5, success=1.0)


def shaped(shaper: TokenShaper, tokens: np.ndarray) -> np.ndarray:
    return shaper.shape([tokens], group("a"))[0]


def test_the_shaper_puts_each_steps_worth_at_its_last_token():
    said = np.array([np.nan, 0.9, np.nan, 0.8, 0.3, np.nan, 0.95, np.nan])
    assert shaped(ClipDelta(), said) == pytest.approx([0, 0, 0, 0.2, -0.2, 0, 0, 0])
    assert shaped(ClipDelta(clip=False), said) == pytest.approx([0, 0.1, 0, 0.5, 0.3, 0, 0, 0])
    assert shaped(ClipDelta(delta=False), said) == pytest.approx([0, 0, 0, 0, -0.2, 0, 0, 0])
    assert np.isnan(shaped(ClipDelta(), np.full(3, np.nan))).all()
