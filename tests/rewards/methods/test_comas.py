"""Rewards of a discussion, by the numbers of CoMAS (arXiv:2510.08529)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import ABSTAINED, SCORED, Group
from rewards.base import Services
from rewards.builtin.comas import CoMasReward, interaction_rewards, read_score
from tests.rewards.groups import group


def discussion(*scores: str) -> Group:
    """A round for each of these texts of a scorer."""
    made = group(*(text for score in scores for text in ("it is 4", "is it?", score)))
    variants = ("solution", "evaluation", "score")
    rollouts = (
        replace(r, variant=variants[i % 3], parent=None if i % 3 == 0 else i - 1) for i, r in enumerate(made.rollouts)
    )
    return replace(made, rollouts=tuple(rollouts))


@pytest.mark.parametrize(("score", "expected"), [(3, (1, 0, 0)), (2, (0.5, 0.5, 0)), (1, (0, 1, 0))])
def test_a_score_divides_one_unit(score, expected):
    assert interaction_rewards(score) == expected
    assert sum(interaction_rewards(score)[:2]) == 1


def test_without_a_score_the_scorer_pays_and_nothing_else_is_known():
    solution, evaluation, scorer = interaction_rewards(None)
    assert scorer == -1
    assert np.isnan([solution, evaluation]).all()


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It stands. <score>3</score>", 3),
        ("<score> 2 </score>", 2),
        ("<score>3</score> no, <score>1</score>", 1),
        ("<think><score>3</score></think><score>1</score>", 1),
        ("<think><score>3</score>", None),
        ("<score>3</score> or rather <score>none</score>", None),
        ("<score>4</score>", None),
        ("<score>2.5</score>", None),
        ("<score>３</score>", None),
        ("<score>3", None),
        ("3", None),
        ("", None),
        ("<score>" * 50_000, None),
    ],
)
def test_a_score_is_read_strictly(text, score):
    assert read_score(text, "score") == score


def test_a_score_without_tags_is_the_whole_text():
    assert [read_score(t, "") for t in (" 2\n", "2 of 3", "")] == [2, None, None]


async def test_every_round_is_settled_by_its_own_score():
    found = discussion("<score>3</score>", "well", "<score>1</score>")
    scores = await CoMasReward().score(found, Services())
    assert scores.values.tolist()[:3] == [1, 0, 0]
    assert np.isnan(scores.values[3:5]).all()
    assert scores.values.tolist()[5:] == [-1, 0, 1, 0]
    assert (scores.state == [SCORED] * 3 + [ABSTAINED] * 2 + [SCORED] * 4).all()
    assert "None" in scores.provenance[3].note


async def test_solutions_alone_show_a_drift():
    found = discussion("<score>3</score>", "<score>2</score>")
    scores = await CoMasReward(of="solution").score(found, Services())
    assert np.nanmean(scores.values) == 0.75
    assert (scores.state == ABSTAINED).sum() == 4
