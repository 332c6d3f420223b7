"""Co-Reward (arXiv:2508.00410): labels cross over from one variant to the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import RewardSection, parse
from cluster.driver.preflight_plugins import plugins
from cluster.errors import ConfigError
from cluster.types import ABSTAINED, Group
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.builtin.co_reward import CoReward, VariantAgreement, cross_labels
from tests.rewards.groups import group

EXACTLY = {"extract": "tag"}


def of_variants(**answers: list[str | None]) -> Group:
    variants = [variant for variant, found in answers.items() for _ in found]
    texts = ["" if a is None else f"<answer>{a}</answer>" for found in answers.values() for a in found]
    made = group(*texts)
    return replace(made, rollouts=tuple(replace(r, variant=v) for r, v in zip(made.rollouts, variants, strict=True)))


async def rewards(made: Group, **options) -> list[float]:
    scores = await CoReward(**EXACTLY).score(made, Services())
    section = RewardSection(use="co_reward", **options)
    return Mixer([section], ["co_reward"], 2)(made, {"co_reward": scores}).rewards.tolist()


async def test_each_view_is_labelled_by_the_other():
    o, a = ["8", "8", "6", "8"], ["6", "6", "8", "6"]
    assert cross_labels({"o": o, "a": a}) == {"o": "6", "a": "8"}
    assert await rewards(of_variants(o=o, a=a)) == [0, 0, 1, 0, 0, 0, 1, 0]


async def test_a_view_whose_others_say_nothing_is_unlabelled_and_the_paper_calls_that_0():
    made = of_variants(o=["8", "8", "6", "8"], a=[None] * 4)
    scores = await CoReward(**EXACTLY).score(made, Services())
    assert scores.state[:4].tolist() == [ABSTAINED] * 4
    assert "o" in scores.provenance[0].note
    assert scores.values[4:].tolist() == [0, 0, 0, 0]
    assert await rewards(made, missing=0.0) == [0] * 8
    answered = of_variants(o=["8", "8", "6", "8"], a=[None, None, "8", None])
    assert await rewards(answered) == [1, 1, 0, 1, 0, 0, 1, 0]


def test_with_three_views_the_others_vote_together_and_the_first_of_equals_wins():
    assert cross_labels({"a": ["1"], "b": ["2", "3"], "c": ["3", "2"]}) == {"a": "2", "b": "1", "c": "1"}
    assert cross_labels({"a": [None], "b": [None]}) == {"a": None, "b": None}


@pytest.mark.parametrize(("o", "a", "expected"), [("112", "131", 1), ("112", "313", 0), ("112", None, np.nan)])
async def test_views_agree_or_do_not(o, a, expected):
    made = of_variants(o=list(o), a=[None] * 3 if a is None else list(a))
    assert (await VariantAgreement(**EXACTLY).score(made, Services())).values == pytest.approx(
        [expected] * 6, nan_ok=True
    )


def test_a_recipe_with_one_view_is_refused():
    with pytest.raises(ConfigError, match=r"rewards\[0\] = 'co_reward' compares 2 variants.*\['orig'\]"):
        plugins(parse({"rewards": [{"use": "co_reward"}]}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rollout": {"prompt_variants": ["orig", "orig"]}}, "names a variant twice"),
        ({"rollout": {"prompt_variants": ["orig", "b"]}, "policies": {"critic": {}}}, "only one policy would answer"),
        ({"rollout": {"prompt_variants": ["orig", "b"]}, "selectors": [{"use": "best"}]}, "rollouts of one prompt"),
    ],
)
def test_views_that_cannot_be_are_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        parse({"rewards": [{"use": "co_reward"}]} | changed)
