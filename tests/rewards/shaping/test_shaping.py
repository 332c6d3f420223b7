"""Shapers: the numbers of PAR and its rivals, and that they touch neither the unknown nor the stored score."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.plugins import StatefulPlugin
from cluster.types import Group, Scores
from learner.advantages.estimators import GroupAdvantage
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.shaping import SHAPERS, Shaper, StepShaper, TokenShaper
from rewards.aggregation.shaping.par import sigmoid
from rewards.aggregation.shaping.rivals import fitted_quantile
from rewards.aggregation.shaping.running import Running
from tests.rewards.groups import group, rollout

REFERENCES = [0.5, 1, 3]
NAN = float("nan")
GROUP_SHAPERS = [name for name, shaper in SHAPERS.items() if not issubclass(shaper, (StepShaper, TokenShaper))]


def referenced(references: object, *num_tokens: int) -> Group:
    made = group("a", extra_info={"reference_scores": references})
    return replace(made, rollouts=tuple(rollout("a", num_tokens=n) for n in num_tokens or (10,)))


def shaped(use: str, value: float, references: object = REFERENCES, num_tokens: int = 10, **options) -> float:
    return float(SHAPERS[use](**options).shape(np.array([value]), referenced(references, num_tokens))[0])


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (shaped("par", 2), 0.605858),
        (shaped("par", 2, 0.5), 0.817574),
        (shaped("par", 2, num_tokens=350, token_penalty=0.01), 0.511981),
        (shaped("par", 2, num_tokens=300, token_penalty=0.01), 0.605858),
        (shaped("par", 7, [7]), 0.5),
        (shaped("par", 2, shift=3.0), 0.106538),
        (shaped("par", 2, [0.5, None]), 0.817574),
        (shaped("par", 2, [1.0], k=2.0), 1 / (1 + np.exp(-2))),
        (fitted_quantile(np.array(REFERENCES), 0.85), 2.871083),
        (shaped("log_sigmoid_centred", 2), -1.220682),
        (shaped("centred", 2), 0.5),
        (shaped("centred", 2, squash="tanh"), (np.tanh(1.5) + np.tanh(1) + np.tanh(-1)) / 3),
        (shaped("centred", 2, squash="arctan"), (np.arctan(1.5) + np.arctan(1) + np.arctan(-1)) / 3),
    ],
)
def test_numbers_of_par_and_its_rivals(found, value):
    """arXiv:2502.18770, formulas of the released code."""
    assert found == pytest.approx(value, abs=1e-6)


def test_running_statistics():
    last = np.array([5.0, 7, 9])
    seen = Running().after(np.array([1.0, NAN, 3])).after(np.array([NAN])).after(last)
    assert (seen.count, seen.mean, seen.std**2) == (5, pytest.approx(5), pytest.approx(8))
    assert seen.standard(last) == pytest.approx([0, 0.707107, 1.414214], abs=1e-6)
    assert seen.clipped(last) == pytest.approx([5, 7, 7.828427], abs=1e-6)
    assert seen.min_max(last) == pytest.approx([0.5, 0.75, 1])


@pytest.mark.parametrize(("how", "second"), [("standard", [0, 0.707107, 1.414214]), ("min_max", [0.5, 0.75, 1])])
def test_a_running_shaper_knows_the_steps_before_also_after_a_resume(how, second):
    steps = [{"a": [1.0, NAN, 3]}, {"b": [5.0, 7, 9]}]
    section = [RewardSection.model_validate({"use": "exact", "shape": {"use": "running", "options": {"how": how}}})]
    states = {}
    for step in steps:
        mix = Mixer(section, ["x"], 1, state_of=states.get)  # a fresh one each time, as after a resume
        [(key, memory)] = mix.states.items()
        assert isinstance(memory, StatefulPlugin)
        before = states.setdefault(key, memory.init_state())
        evidence = {id: {"x": Scores.of(values)} for id, values in step.items()}
        mixed = mix.of_step([group("a", "b", "c")] * len(step), list(evidence.values()))
        states[key] = msgspec.msgpack.decode(msgspec.msgpack.encode(memory.update(before, Seen(evidence))))
    assert mixed[0].rewards == pytest.approx(second, abs=1e-6), "5 scores so far: mean 5, variance 8, 1 to 9"
    told = memory.metrics(states[key])
    assert told == {"reward/x_running_mean": pytest.approx(5), "reward/x_running_std": pytest.approx(8**0.5)}


def test_without_any_score_a_running_shaper_knows_nothing():
    mix = Mixer([RewardSection.model_validate({"use": "exact", "shape": {"use": "running"}})], ["x"], 1)
    assert np.isnan(mix(group("a", "b"), {"x": Scores.of([None, None])}).rewards).all()
    assert mix.states["rewards.x.shape"].metrics(mix.states["rewards.x.shape"].init_state()) == {}


class Seen(NamedTuple):
    scores: dict[str, dict[str, Scores]]


def test_a_division_by_the_deviation_undoes_the_bound():
    saturated = sigmoid(np.array([6.0, 7, 8]))
    assert saturated == pytest.approx([0.997527, 0.999089, 0.999665], abs=1e-6)
    standard = GroupAdvantage(eps=1e-8).standard(saturated)
    assert standard == pytest.approx([-1.114888, 0.297157, 0.817732], abs=1e-6)
    bounded = GroupAdvantage(normalize_std=False).standard(saturated)
    assert bounded == pytest.approx([-0.001233, 0.000329, 0.000904], abs=1e-6)
    assert np.abs(GroupAdvantage(eps=0.05).standard(saturated)).max() < 0.03


@pytest.mark.parametrize("use", GROUP_SHAPERS)
def test_unknown_stays_unknown(use):
    found = SHAPERS[use]().shape(np.array([NAN, 1.0]), referenced(REFERENCES, 5, 5))
    assert np.isnan(found[0])
    assert np.isfinite(found[1])
    assert np.isnan(SHAPERS[use]().shape(np.array([NAN, NAN]), referenced(REFERENCES, 5, 5))).all()


@pytest.mark.parametrize("use", ["par", "centred", "log_sigmoid_centred"])
def test_without_references_the_score_is_unknown(use):
    for references in ([], None, [None]):
        assert np.isnan(SHAPERS[use]().shape(np.array([1.0, 2.0]), referenced(references, 5, 5))).all()
    assert np.isnan(SHAPERS[use]().shape(np.array([1.0]), group("a"))).all()


@pytest.mark.parametrize("references", ["0.5", [True], [[1.0]], {"a": 1}])
def test_references_that_are_no_numbers_name_their_task(references):
    with pytest.raises(ConfigError, match=r"task sums/0: 'extra_info.reference_scores' is .*a list of numbers"):
        shaped("par", 2, references)


def mixer(*shape: dict | None, **fields) -> Mixer:
    rewards = [RewardSection.model_validate({"use": "exact", "shape": s, **fields}) for s in shape]
    return Mixer(rewards, ["x", "y"][: len(rewards)], 1)


def test_the_mixer_shapes_one_reward_and_leaves_the_stored_score():
    two, scores = referenced(REFERENCES, 5, 5), Scores.of([2.0, 0.0])
    mixed = mixer({"use": "par"}, None)(two, {"x": scores, "y": scores})
    assert mixed.rewards[0] == pytest.approx(2.605858, abs=1e-6)
    assert mixed.metrics["reward/x_mean"] == 1.0
    assert mixed.metrics["reward/x_shaped_mean"] == pytest.approx(float(np.mean(mixed.rewards - [2, 0])))
    assert "reward/y_shaped_mean" not in mixed.metrics
    assert scores.values.tolist() == [2.0, 0.0]


def test_a_missing_value_is_not_shaped():
    two = referenced(REFERENCES, 5, 5)
    mixed = mixer({"use": "par"}, missing=0.0)(two, {"x": Scores.of([2.0, None])})
    assert mixed.rewards == pytest.approx([0.605858, 0.0], abs=1e-6)
    assert mixer({"use": "par"})(two, {"x": Scores.of([2.0, None])}).metrics["reward/x_shaped_mean"] == pytest.approx(
        0.605858, abs=1e-6
    )
    nowhere = mixer({"use": "par"})(group("a", "b"), {"x": Scores.of([2.0, 1.0])})
    assert nowhere.drop == "too_few_scores"


class Zero(Shaper):
    def shape(self, values, group):
        return np.zeros(len(values))


class Short(Shaper):
    def shape(self, values, group):
        return values[:1]


class InPlace(Shaper):
    def shape(self, values, group):
        values *= 2
        return values


@pytest.mark.parametrize("own", ["Zero", "Short"])
def test_a_shaper_that_invents_scores_is_refused(own):
    mix = mixer({"use": f"{__name__}:{own}"})
    with pytest.raises(ConfigError, match=f"the shaper of reward 'x' \\({own}\\)"):
        mix(group("a", "b"), {"x": Scores.of([2.0, None])})


def test_a_shaper_of_ones_own_cannot_change_evidence():
    scores = Scores.of([2.0, 1.0])
    mixed = mixer({"use": f"{__name__}:InPlace"})(group("a", "b"), {"x": scores})
    assert mixed.rewards.tolist() == [4.0, 2.0]
    assert scores.values.tolist() == [2.0, 1.0]


def test_an_unknown_shaper_or_option_is_named():
    with pytest.raises(ConfigError, match=r"rewards\[1\]\.shape\.use = 'pra' is unknown. Did you mean 'par'"):
        mixer(None, {"use": "pra"})
    with pytest.raises(ConfigError, match=r"rewards\[0\]\.shape\.options of 'par': unknown option 'kk'"):
        mixer({"use": "par", "options": {"kk": 1}})
