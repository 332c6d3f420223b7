"""Monitors of evidence: what they measure of a step's groups, and when they alarm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.config import parse
from cluster.driver.event_consumer import EventConsumer
from cluster.errors import ConfigError
from cluster.observability import metrics
from cluster.types import Scores
from rewards.aggregation.mixer import Mixer
from rewards.monitors import build_monitors
from rewards.monitors.cliff import PolicyCliff
from rewards.monitors.overoptimisation import OverOptimisation
from rewards.monitors.rewardmath import OneToMany, ranks_of
from rewards.monitors.starc import Starc
from tests.rewards.groups import group

NAN = float("nan")


def mixer(monitors, *weights: float, names=("a", "b")):
    section = [{"use": "exact", "name": name, "weight": w} for name, w in zip(names, weights, strict=True)]
    settings = parse({"rewards": section})
    return Mixer(settings.rewards, settings.reward_names, 1, monitors)


def measured(monitors, weights, *rows: tuple[list[float], list[float]]) -> dict[str, float]:
    """Of groups with these scores of the rewards a and b: the metrics of the first, which are those of the step."""
    groups = [group(*"x" * len(a), seq=i) for i, (a, _) in enumerate(rows)]
    scores = [{"a": Scores.of(a), "b": Scores.of(b)} for a, b in rows]
    mixed = mixer(monitors, *weights).of_step(groups, scores)
    own = [{k: v for k, v in m.metrics.items() if k not in mixer((), *weights)(g, s).metrics} for m, g, s in
           zip(mixed, groups, scores, strict=True)]  # fmt: skip
    for row in own[1:]:
        assert row == pytest.approx(own[0], nan_ok=True)
    return own[0]


def test_the_cliff_counts_groups_that_a_tenth_of_a_weight_turns_over():
    near, far = ([1.0, 0.0], [0.0, 0.95]), ([1.0, 0.0], [0.0, 0.5])
    found = measured([PolicyCliff(tau=0.1, noise=0.03)], (1.0, 1.0), near, far)
    assert found["monitor/cliff_flip_frac"] == 0.5, "0.9 against 0.95, and 1.045 against 1"
    assert found["monitor/cliff_fragile_frac"] == 0.5
    assert found["monitor/cliff_degenerate_frac"] == 0
    assert found["monitor/cliff_top_gap"] == pytest.approx((0.05 + 0.5) / 2)
    # The difference of the two rollouts goes from 0.05 to −0.05, and from 0.5 to 0.4, in units of τ.
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = (sigmoid(0.5) - sigmoid(-0.5) + sigmoid(5) - sigmoid(4)) / 2
    assert found["monitor/cliff_distance"] == pytest.approx(expected)


def test_what_a_reward_adds_carries_its_weight():
    stored, scores = group("x", "y"), {"a": Scores.of([1.0, 0.0]), "b": Scores.of([0.5, NAN])}
    parts = mixer((), 2.0, -1.0)(stored, scores).parts
    assert parts["a"].tolist() == [2.0, 0.0]
    assert parts["b"] == pytest.approx([-0.5, NAN], nan_ok=True)
    assert mixer((), 2.0, 0.0)(stored, scores).parts.keys() == {"a"}, "a shadow adds nothing"


def test_the_catalogue_s_case_through_the_mixer():
    """r = (1, 0.99) against (0.99, 1): the weight of b from 1 to 1.1 turns 0.5 + 0.5, 0.4 + 0.59 round."""
    found = measured([PolicyCliff(change=0.1, tau=0.1)], (1.0, 1.0), ([0.5, 0.3], [0.5, 0.69]))
    assert found["monitor/cliff_flip_frac"] == 1
    assert measured([PolicyCliff()], (1.0, 1.0), ([1.0, 1, 0], [0.0, 0, 0]))["monitor/cliff_top_gap"] == 0


def test_a_reward_alone_or_unknown_has_no_weight_to_change():
    alone = measured([PolicyCliff()], (1.0, 0.0), ([1.0, 0.0], [0.0, 9.0]))
    assert np.isnan(alone["monitor/cliff_flip_frac"])
    assert np.isnan(alone["monitor/cliff_distance"])
    assert np.isnan(measured([PolicyCliff()], (1.0, 1.0), ([1.0, NAN], [0.0, 0.9]))["monitor/cliff_flip_frac"])


def test_an_unstable_policy_alarms_after_its_patience_and_once():
    monitor, alarms = PolicyCliff(max_flip_frac=0.3, patience=2), []
    for step, rate in enumerate([0.4, 0.1, 0.4, None, 0.5, 0.6, 0.2]):
        row = {} if rate is None else {"monitor/cliff_flip_frac": rate}
        alarms.append(monitor.observe(step, row))
    assert [(a.step, a.good) for a in alarms if a] == [(4, 2)]


def test_starc_of_a_shadow_and_of_two_rewards():
    rows = ([1.0, 0.0], [0.0, 1.0]), ([2.0, 4.0], [9.0, 7.0])
    assert measured([Starc(reward="b")], (1.0, 0.0), *rows) == {"reward/b_starc_distance": pytest.approx(1)}
    alike = [(a, [3 * x + 1 for x in a]) for a, _ in rows]
    assert measured([Starc(reward="b", other="a")], (1.0, 1.0), *alike)["reward/b_starc_distance"] < 1e-9
    unknown = measured([Starc(reward="b")], (1.0, 0.0), ([1.0, 0.0], [NAN, NAN]))
    assert np.isnan(unknown["reward/b_starc_distance"])


def test_right_ones_are_ranked_among_the_wrong_ones_of_their_group():
    assert ranks_of(np.array([0.5, 0.9, 0.5, 0.1]), np.array([1.0, 0, 0, 0])) == [3]
    assert ranks_of(np.array([0.95, 0.9, 0.2]), np.array([1.0, 0, 1])) == [1, 2]
    assert ranks_of(np.array([0.95, NAN, 0.2]), np.array([1.0, 0, NAN])) == [], "no wrong one is known"
    found = measured(
        [OneToMany(reward="a", verifier="b")],
        (1.0, 0.0),
        ([0.5, 0.9, 0.5, 0.1], [1.0, 0, 0, 0]),
        ([0.95, 0.9], [1.0, 0.0]),
    )
    assert found == {
        "reward/a_one_to_many_accuracy": 0.5,
        "reward/a_one_to_many_mrr": pytest.approx((1 / 3 + 1) / 2),
    }


def test_a_reward_that_loses_its_rank_alarms():
    monitor, name = OneToMany(reward="a", verifier="b", min_accuracy=0.5, patience=2), "reward/a_one_to_many_accuracy"
    alarms = [monitor.observe(step, {name: x}) for step, x in enumerate([0.6, 0.4, 0.3, 0.2, 0.9])]
    assert [(a.step, a.metric) for a in alarms if a] == [(2, name)]


def test_over_optimisation_tells_where_on_the_hump_training_is():
    monitor, told = OverOptimisation(), []
    for step, d in enumerate(np.linspace(0, 4, 9)):
        gained = d * (1 - 0.5 * np.log(d)) if d else 0.0
        monitor.observe(step, {"loss/kl_nats": d * d, "reward/mean": 0.0})
        assert monitor.report() == {}, "nothing was measured since"
        monitor.observe(step, {"eval/accuracy": 0.3 + gained})
        told.append(monitor.report())
    assert [row["monitor/over_optimisation_distance"] for row in told] == pytest.approx(np.linspace(0, 4, 9))
    assert "monitor/over_optimisation_alpha" not in told[5], "five distances beside 0"
    assert told[6]["monitor/over_optimisation_alpha"] == pytest.approx(1)
    assert told[-1]["monitor/over_optimisation_beta"] == pytest.approx(0.5)
    assert told[-1]["monitor/over_optimisation_peak_distance"] == pytest.approx(np.e)


def test_what_a_monitor_works_out_is_a_row_of_metrics(tmp_path):
    kl = {"loss": {"kl_coef": 1e-6}}  # or else nothing measures the distance
    settings = parse({"monitors": [{"use": "over_optimisation"}], "learner": kl, "tracking": {"tensorboard": False}})
    recorder = metrics.Recorder(tmp_path, settings.tracking, "run", {})
    recorder.record(3, {"loss/kl_nats": 0.25, "reward/mean": 1.0})
    nothing: Any = SimpleNamespace()  # an evaluation needs neither events nor a table
    EventConsumer(nothing, settings, recorder, nothing, lambda step: None).evaluated(3, 0.5, NAN, 1.0)
    assert metrics.read(tmp_path)[-1]["monitor/over_optimisation_distance"] == 0.5


@pytest.mark.parametrize(
    "monitor",
    [
        {"use": "starc", "options": {"reward": "nobody"}},
        {"use": "one_to_many", "options": {"reward": "exact", "verifier": "nobody"}},
    ],
)
def test_a_monitor_of_a_reward_that_is_not_there_is_refused(monitor):
    with pytest.raises(ConfigError, match=r"monitors\[0\].*no reward is called 'nobody'"):
        build_monitors(parse({"rewards": [{"use": "exact"}], "monitors": [monitor]}))
