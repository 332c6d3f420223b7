"""Credit of an episode that left several rollouts: episodes are compared, and rollouts share what theirs is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cluster.types import Group
from learner.advantages.estimators import DrGrpo, advantages_of
from tests.learner.groups import group, rollout, scored

NAN = float("nan")


def of_episodes(numbers: Sequence[int | None]) -> Group:
    """A group whose rollouts come from these episodes."""
    rng = np.random.default_rng(0)
    return group(0, [rollout(2, 3, rng, episode=number) for number in numbers])


def credit(whole: Group, returns: Sequence[float]) -> list[float]:
    (found,) = advantages_of(DrGrpo(), "dr_grpo", [scored(whole, returns)])
    return [float(values[0]) for values in found]


def test_an_episode_counts_once_however_many_rollouts_it_left():
    worth = [1.0, 1.0, 1.0, 0.0, 0.0]
    assert credit(of_episodes([0, 0, 0, 1, 2]), worth) == pytest.approx([2 / 3] * 3 + [-1 / 3] * 2)
    assert credit(of_episodes([None] * 5), worth) == pytest.approx([2 / 5] * 3 + [-3 / 5] * 2)


def test_an_episode_is_worth_the_mean_of_its_rollouts():
    assert credit(of_episodes([0, 0, 1]), [1.0, 0.0, 0.0]) == pytest.approx([0.25, 0.25, -0.25])


def test_a_rollout_that_is_left_out_stays_out_and_moves_no_baseline():
    found = credit(of_episodes([0, 0, 1, 2]), [1.0, NAN, 0.0, NAN])
    assert found == pytest.approx([0.5, NAN, -0.5, NAN], nan_ok=True)


def test_prompts_of_several_views_are_compared_apart():
    whole = of_episodes([0, 0, 1, 2])
    whole = replace(whole, rollouts=(*whole.rollouts[:3], replace(whole.rollouts[3], variant="other")))
    assert credit(whole, [1.0, 1.0, 0.0, 1.0]) == pytest.approx([0.5, 0.5, -0.5, 0.0])
