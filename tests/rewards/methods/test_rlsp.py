"""RLSP: correctness less what a short search leaves open (arXiv:2502.06773), with the catalogue's numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import parse
from cluster.types import Scores
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.builtin.rlsp import Rlsp
from rewards.judges.templates import TEMPLATES
from tests.rewards.groups import group

THOUGHT_4000, THOUGHT_8000 = "x" * 4000, "x" * 8000


def boxed(thought: str, answer: str) -> str:
    return f"{thought}\\boxed{{{answer}}}"


async def values(*texts: str, **options) -> np.ndarray:
    return (await Rlsp(**options).score(group(*texts, answer="85"), Services())).values


async def test_the_numbers_of_the_catalogue():
    texts = boxed(THOUGHT_4000, "85"), boxed(THOUGHT_8000, "85"), boxed(THOUGHT_8000, "84"), THOUGHT_8000
    np.testing.assert_allclose(await values(*texts), [0.0, 0.5, -0.5, -1.0], atol=1e-12)


async def test_with_a_judge_of_effort_two_rewards_are_mixed():
    rewards = parse(
        {"rewards": [{"use": "rlsp", "weight": 0.8}, {"use": "exact", "weight": 0.2, "missing": 0.5}]}
    ).rewards
    mixer, one = Mixer(rewards, ["rlsp", "judge"], 1), group("a", "b")
    (mixed,) = mixer.of_step([one], [{"rlsp": Scores.of([0.5, 0.5]), "judge": Scores.of([0.75, None])}])
    np.testing.assert_allclose(mixed.rewards, [0.55, 0.5])


async def test_thinking_longer_never_earns_more_than_a_right_answer():
    found = await values(*(boxed("x" * n, "85") for n in (0, 4, 400, 40_000, 4_000_000)), penalty=10.0)
    assert found[0] == 1 - 10.0, "a length below 1 counts as 1"
    assert (np.diff(found) >= 0).all()
    assert found[-1] < 1


async def test_the_reasoning_ends_where_the_answer_begins():
    plain = await values("xxxxxxxx 85", "xxxxxxxx 84", "xxxxxxxx none", penalty=1.0, extract="last_number")
    np.testing.assert_allclose(plain, [1 - 4 / 9, -4 / 9, -0.5 - 4 / 13])
    thoughtful = group("x" * 8 + "</think>\\boxed{85}", answer="85")
    thoughtful = replace(thoughtful, rollouts=tuple(replace(r, opened="<think>") for r in thoughtful.rollouts))
    (value,) = (await Rlsp(penalty=1.0).score(thoughtful, Services())).values
    assert value == pytest.approx(1 - 4 / len("<think>xxxxxxxx</think>"))


async def test_a_task_without_a_reference_is_no_zero():
    scores = await Rlsp().score(group("a", answer=None), Services())
    assert np.isnan(scores.values).all()


def test_the_template_of_effort_says_that_correctness_does_not_count():
    template = TEMPLATES["effort"]()
    assert list(template.labels.values()) == [0, 1, 2, 3, 4]
    assert "Do not judge whether the answer is right" in template.instructions
