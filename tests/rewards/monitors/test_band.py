"""A metric that leaves its bounds, and stays away."""

from __future__ import annotations

import pytest

from cluster.config import parse
from cluster.errors import ConfigError
from rewards.monitors import build_monitors
from rewards.monitors.band import Band

NAME = "reward/comas_solution_mean"


def alarms(*values: float | None) -> list[tuple[int, int]]:
    """(step, last good step) of each alarm."""
    band = Band(metric=NAME, low=0.2, high=0.8)
    told = [band.observe(step, {NAME: value}) for step, value in enumerate(values, 1)]
    return [(alarm.step, alarm.good) for alarm in told if alarm]


def test_three_times_running_is_an_alarm_and_only_one():
    assert alarms(0.5, 0.9, 0.9, 0.9, 0.9, 0.9) == [(4, 1)]
    assert alarms(0.5, 0.1, 0.9, 0.1) == [(4, 1)], "either side"
    assert alarms(0.5, 0.9, 0.9, 0.5, 0.9, 0.9) == []
    assert alarms(0.9, 0.9, 0.9, 0.5, 0.9, 0.9, 0.9) == [(3, 0), (7, 4)], "back within, it rearms"


def test_rows_without_it_say_nothing():
    assert alarms(0.5, 0.9, None, 0.9, None, 0.9) == [(6, 1)]
    assert Band(metric=NAME, high=0.8).observe(1, {"reward/mean": 0.9}) is None


def test_the_bounds_themselves_are_within():
    assert alarms(0.8, 0.2, 0.8, 0.2) == []


def test_bounds_that_bound_nothing_are_refused():
    for options in ({"metric": NAME}, {"metric": NAME, "low": 0.8, "high": 0.2}):
        with pytest.raises(ConfigError, match="bound nothing"):
            build_monitors(parse({"monitors": [{"use": "band", "options": options}]}))


def test_it_may_watch_one_of_several_policies():
    options = {"metric": "reward/of_b_mean", "high": 0.9}
    watched = {"monitors": [{"use": "band", "options": options}]}
    assert build_monitors(parse({**watched, "policies": {"b": {}}}))
    with pytest.raises(ConfigError, match="no reward is called 'of_b'"):
        build_monitors(parse(watched))
