"""The simulation's arithmetic, and its stand-in engines on a real Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.buffer.server import Store
from tests.bench.simulate import Costs, Shape, bottleneck, loads, measure

COSTS = Costs(engines=10, redis_group_s=1e-3, redis_report_s=1e-4, driver_report_s=1e-4)
SHAPE = Shape(tokens_per_s=1000.0, sampling_share=0.5, tokens=1000, group_size=10)


def test_a_part_is_full_where_its_load_is_one():
    part, gpus = bottleneck(COSTS, SHAPE)
    assert part == "redis"
    assert gpus == pytest.approx(1 / (0.05 * 1e-3 + 0.5 * 1e-4))
    assert loads(COSTS, SHAPE, gpus)["redis"] == pytest.approx(1.0)


def test_what_costs_most_is_the_bottleneck():
    assert bottleneck(replace(COSTS, driver_report_s=1e-2), SHAPE)[0] == "driver"
    long = replace(SHAPE, tokens=32_000, tokens_per_s=32_000.0)
    assert bottleneck(COSTS, long)[0] == "network of redis"


def test_stand_in_engines_cost_something_of_every_part(tmp_path: Path):
    with Store(tmp_path / "redis") as store:
        costs = measure(store.url, tmp_path, engines=3, repetitions=1)
    assert costs.redis_group_s > costs.redis_report_s > 0
    assert costs.driver_report_s > 0
