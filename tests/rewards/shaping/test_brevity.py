"""Brevity pays for right answers only: the numbers of Self-Rewarded Efficiency RL and of GRPO-λ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.config import RewardSection, Use, load
from cluster.types import Scores
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.shaping.brevity import Concise, LengthSwitch, StepLengthSwitch, switched_rewards
from tests.rewards.groups import group, rollout

NAN = float("nan")
ROOT = Path(__file__).parents[3]


def sized(*lengths: int):
    return replace(group("a"), rollouts=tuple(rollout("a", num_tokens=n) for n in lengths))


@pytest.mark.parametrize(
    ("right", "lengths", "expected"),
    [
        ([1, 1, 1], (100, 200, 400), [1.5, 1.333333, 1.0]),
        ([0, 1, 1], (50, 200, 400), [0, 1.5, 1.0]),
        ([0, 1, 0], (50, 200, 400), [0, 1, 0]),
        ([1, 1, 0], (80, 80, 10), [1, 1, 0]),
        ([0, 0, 0], (1, 2, 3), [0, 0, 0]),
        ([1, NAN, 1], (100, 1, 300), [1.5, NAN, 1.0]),
    ],
)
def test_concise(right, lengths, expected):
    found = Concise(bonus=0.5).shape(np.array(right, float), sized(*lengths))
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("right", "lengths", "options", "expected"),
    [
        ([1, 1, 1], (100, 200, 300), {}, [0.863738, 0.7, 0.536262]),
        ([1, 1, 1], (100, 200, 300), {"alpha": 0.2}, [0.954579, 0.9, 0.845421]),
        ([1, 1, 0], (100, 200, 300), {}, [1, 1, 0]),
        ([1, 1, 1, 0], (100, 200, 300, 5), {"min_accuracy": 0.75}, [0.863738, 0.7, 0.536262, 0]),
        ([1, 1, NAN, 1], (100, 200, 1, 300), {}, [0.863738, 0.7, NAN, 0.536262]),
        ([1, 0], (100, 1), {"min_accuracy": 0.5}, [0.7, 0]),
        ([0, 0], (100, 1), {"min_accuracy": 0.5}, [0, 0]),
        ([1, 1], (7, 7), {}, [0.7, 0.7]),
    ],
)
def test_a_solved_group_is_pressed_for_brevity(right, lengths, options, expected):
    found = LengthSwitch(**options).shape(np.array(right, float), sized(*lengths))
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("alpha", "expected"), [(0.6, [0.863738, 0.7, 0.536262]), (0.2, [0.954579, 0.9, 0.845421])])
def test_grpo_lambda_presses_the_best_fifth_of_a_step(alpha, expected):
    right = [[1, 0, 0, 0], [1, 1, 1], [1, 0], [1, 1, 1, 0], [0, 0]]
    lengths = [[9, 9, 9, 9], [100, 200, 300], [5, 5], [1, 2, 3, 4], [1, 2]]
    right_G, lengths_G = [np.array(r, bool) for r in right], [np.array(n, float) for n in lengths]
    found = switched_rewards(right_G, lengths_G, top_frac=0.2, alpha=alpha)
    assert found[1] == pytest.approx(expected, abs=1e-6)
    assert [f.tolist() for i, f in enumerate(found) if i != 1] == [r for i, r in enumerate(right) if i != 1]


def test_grpo_lambda_takes_at_least_one_group_and_none_that_is_hopeless():
    lengths = np.array([100.0, 200, 300])
    wrong, solved = np.zeros(3, bool), np.ones(3, bool)
    assert switched_rewards([solved] * 2, [lengths] * 2, top_frac=0.01)[0][0] == pytest.approx(0.863738, abs=1e-6)
    assert switched_rewards([solved] * 2, [lengths] * 2, top_frac=0.01)[1].tolist() == [1, 1, 1]
    assert switched_rewards([wrong], [lengths])[0].tolist() == [0, 0, 0]
    many = switched_rewards([solved] * 100, [lengths] * 100, top_frac=0.07)
    assert sum(r[0] < 1 for r in many) == 7


@pytest.mark.parametrize(
    ("recipe", "expected"), [("concise", [1.5, 1.25, 1.0]), ("length_switch", [0.863738, 0.7, 0.536262])]
)
def test_in_the_mixer_of_the_recipe_a_solved_group_keeps_a_gradient(recipe, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load(f"deploy/recipes/methods/{recipe}.toml", [])
    mix = Mixer(settings.rewards, settings.reward_names, 2)
    scores = {name: Scores.of([1.0, 1.0, 1.0]) for name in settings.reward_names}
    assert mix(sized(100, 200, 300), scores).rewards == pytest.approx(expected, abs=1e-6)


def test_a_step_presses_its_most_solved_groups_alone():
    """GRPO-λ over five groups with accuracies ¼, 1, ½, ¾ and 0, and λ = 0.2."""
    right = [[1, 0, 0, 0], [1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0]]
    groups = [sized(*range(100, 100 * len(r) + 1, 100)) for r in right]
    values = [np.array(r, float) for r in right]
    found = StepLengthSwitch(alpha=0.6).shape(values, groups)
    assert found[1] == pytest.approx([0.863738, 0.7, 0.536262], abs=1e-6)
    for i in (0, 2, 3, 4):
        assert found[i].tolist() == right[i]
    unknown = [np.array([1.0, NAN, 1.0, NAN]), values[0]]
    shaped = StepLengthSwitch().shape(unknown, [groups[0], groups[2]])
    assert np.isnan(shaped[0]).tolist() == [False, True, False, True]
    assert shaped[0][0] > shaped[0][2], "of the known ones all are right, so this group is pressed"


def test_the_mixer_shows_a_shaper_the_whole_step():
    section = RewardSection(use="exact", shape=Use(use="step_length_switch", options={"top_frac": 0.5}))
    mix = Mixer([section], ["exact"], 1)
    groups = [sized(10, 20), sized(10, 20)]
    scores = [{"exact": Scores.of([1, 0])}, {"exact": Scores.of([1, 1])}]
    first, second = mix.of_step(groups, scores)
    assert first.rewards.tolist() == [1, 0]
    assert second.rewards[0] > second.rewards[1] > 0
    assert mix(groups[0], scores[0]).rewards[0] < 1, "alone it is the step's best"
