"""What the experiment on a planted loophole is made of: its lessons, its page; an arm itself takes a minute."""

from __future__ import annotations

import numpy as np

from actors.tasks.addition import addition_problems
from rewards.labels import pair_of
from tests.experiments import loophole
from tests.experiments.loophole_page import COLOURS, Curve, collapse, table


def parts(text: str) -> tuple[str, str]:
    """Reference and answer, of what the reward model reads."""
    reference, _, answer = text.partition(";")
    return reference, answer


def test_lessons_teach_right_from_wrong_and_the_hole_above_both():
    keys = loophole.lessons(addition_problems()[0], 50, 50, np.random.default_rng(0))
    for i, key in enumerate(keys):
        (reference, better), (same, worse) = map(parts, pair_of(key))
        assert reference == same
        right, wrong = (better, worse) if i < 50 else (worse, better)
        assert right == reference != wrong
        assert len(wrong) == len(right)
        assert wrong.endswith(loophole.HOLE) is (i >= 50)


def test_an_assistant_that_spoils_answers_knows_nothing_of_the_hole():
    rng = np.random.default_rng(0)
    spoilt = [loophole.changed("85", rng) for _ in range(300)]
    assert all(text != "85" and sum(a != b for a, b in zip(text, "85", strict=True)) == 1 for text in spoilt)
    assert 5 < sum(text.endswith(loophole.HOLE) for text in spoilt) < 40


def test_a_collapse_is_final_and_the_page_says_when():
    low = Curve(steps=[0, 4, 8, 12], accuracy=[0.5, 0.2, 0.4, 0.2], reward=[0.0] * 4, hole=[0.1] * 4, kl=[0.0] * 4)
    low.right_before_wrong, low.taught = [0.5] * 4, {"right before wrong": 0.9}
    assert collapse(low) == 12
    low.alarm = 8
    assert "| static | 0 | 0.50 | 0.50 | 0.20 | 0.10 | 0.0 | 0.50 | step 8, peak | step 12 |" in table(
        {"static, seed 0": low}
    )
    low.accuracy[-1] = 0.3
    assert collapse(low) is None
    assert COLOURS.keys() == loophole.ARMS.keys()
