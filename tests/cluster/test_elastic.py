"""When a role grows and shrinks: the decisions, without workers."""

from __future__ import annotations

import itertools
import math

import pytest

from cluster import config
from cluster.driver.autoscaler import LONGEST_PATIENCE, Autoscaler, HysteresisController, queue_age, waiting_share
from cluster.errors import ConfigError

NAN = math.nan


def changes(heat: HysteresisController, values) -> list[int]:
    return [heat.observe(value) for value in values]


def test_it_takes_several_in_a_row_and_begins_anew_after_each_answer():
    heat = HysteresisController(high=0.4, low=0.1, times=3)
    assert changes(heat, [0.5, 0.5, 0.3, 0.5, 0.5, 0.5]) == [0, 0, 0, 0, 0, 1]
    assert changes(heat, [0.5, 0.5, 0.5]) == [0, 0, 1]
    assert changes(heat, [0.0, 0.0, 0.2, 0.0, 0.0, 0.0]) == [0, 0, 0, 0, 0, -1]


def test_between_the_bounds_and_at_them_nothing_changes():
    heat = HysteresisController(high=0.4, low=0.1, times=1)
    assert changes(heat, [0.1, 0.25, 0.4] * 5) == [0] * 15


def test_what_is_unknown_is_no_value():
    heat = HysteresisController(high=0.4, low=0.1, times=2)
    assert changes(heat, [0.5, NAN, NAN, 0.5]) == [0, 0, 0, 1]


def test_a_load_between_two_numbers_does_not_have_them_come_and_go_for_ever():
    heat, workers, left = HysteresisController(high=0.4, low=0.1, times=2), 2, []
    for step in range(1000):
        change = heat.observe(0.05 if workers == 2 else 0.6)
        workers += change
        if change < 0:
            left.append(step)
    apart = [b - a for a, b in itertools.pairwise(left)]
    assert apart == sorted(apart)
    assert apart[-1] >= 2 * LONGEST_PATIENCE
    assert len(left) < 20


def test_who_is_missed_much_later_was_rightly_sent_away():
    heat = HysteresisController(high=0.4, low=0.1, times=2)
    changes(heat, [0.0] * 2 + [0.2] * 10 + [0.5] * 2)
    assert heat.patience == 1


def test_loads_are_read_from_rows_and_unknown_in_others():
    assert waiting_share({"learner/wait_s": 1.0, "learner/step_s": 4.0}) == 0.25
    assert math.isnan(waiting_share({"eval/accuracy": 1.0}))
    assert math.isnan(waiting_share({"learner/wait_s": None, "learner/step_s": 4.0}))
    assert queue_age("a")({"judge/a_queue_age_s": 3.0}) == 3.0
    assert math.isnan(queue_age("b")({"judge/a_queue_age_s": 3.0}))


JUDGES = {"critic": {"kind": "vllm", "model": "m"}}


def autoscaler(**rollout) -> Autoscaler:
    judges = {"critic": {"max_replicas": 2, "times": 1}}
    return Autoscaler(config.parse({"autoscaling": {"rollout": rollout, "judges": judges}, "judges": JUDGES}))


def step(share: float) -> dict[str, float]:
    return {"learner/wait_s": share, "learner/step_s": 1.0}


def test_off_by_default():
    assert not Autoscaler(config.parse({})).on


def test_a_starved_learner_gets_engines_up_to_the_most_and_keeps_the_least():
    follows, workers = autoscaler(max_workers=3, min_workers=2, times=1), 2
    for share, expected in ((0.9, 3), (0.9, 3), (0.0, 2), (0.0, 2)):
        follows.record(1, step(share))
        counts = {"rollout": workers, "judge:critic": 1}
        workers = follows.wanted(counts, counts).get("rollout", workers)
        assert workers == expected


def test_while_one_is_on_its_way_nothing_more_is_asked_for():
    follows = autoscaler(max_workers=9, times=2)
    there, coming = {"rollout": 1, "judge:critic": 1}, {"rollout": 2, "judge:critic": 1}
    for _ in range(5):
        follows.record(1, step(0.9))
        assert follows.wanted(coming, there) == {}
    follows.record(1, step(0.9))
    assert follows.wanted(coming, coming) == {}, "what was seen before it was there does not count"
    follows.record(1, step(0.9))
    assert follows.wanted(coming, coming) == {"rollout": 3}


def test_a_number_beyond_the_bounds_that_somebody_wished_for_is_left_alone():
    follows = autoscaler(max_workers=2, min_workers=2, times=1)
    for share, there in ((0.9, 5), (0.0, 1)):
        follows.record(1, step(share))
        assert follows.wanted({"rollout": there, "judge:critic": 1}, {"rollout": there, "judge:critic": 1}) == {}


def test_a_judge_follows_the_age_of_its_queue():
    follows, there = autoscaler(), {"rollout": 1, "judge:critic": 1}
    follows.record(1, {**step(0.9), "judge/critic_queue_age_s": 20.0, "judge/other_queue_age_s": 0.0})
    assert follows.wanted(there, there) == {"judge:critic": 2}, "and the engines, which nothing was said of, do not"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rollout": {"max_workers": 1, "min_workers": 2}}, "a lower bound, 2, is above its upper one, 1"),
        ({"rollout": {"grow_above_frac": 0.1, "shrink_below_frac": 0.2}}, "a lower bound, 0.2"),
        ({"judges": {"critic": {"max_replicas": 1, "min_replicas": 3}}}, "a lower bound, 3"),
        ({"judges": {"nobody": {"max_replicas": 2}}}, "autoscaling.judges.nobody: .*kind 'vllm' only"),
    ],
)
def test_what_cannot_be_is_refused(section, said):
    with pytest.raises(ConfigError, match=said):
        config.parse({"autoscaling": section, "judges": JUDGES})
