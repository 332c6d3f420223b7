"""SPC (arXiv:2504.19162): what the critic won, and its accuracies on correct steps and on errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cluster.types import Event
from rewards.base import Services
from rewards.builtin.spc import Spc, critic_accuracy
from tests.rewards.groups import group


def test_the_numbers_of_the_catalogue():
    assert critic_accuracy(0.8, 0.6) == pytest.approx((0.7, 0.685714), abs=1e-6)
    assert critic_accuracy(0.0, 1.0) == (0.5, 0.0), "a critic that always says Incorrect"
    assert critic_accuracy(0.0, 0.0) == (0.0, 0.0)


async def test_accuracies_are_logged_by_kind_of_step_and_a_missing_verdict_counts_nowhere():
    shown = [("correct step", 1.0)] * 4 + [("correct step", -1.0)] + [("error step", 1.0)] * 3
    shown += [("error step", -1.0)] * 2 + [("error step", math.nan), ("valid", -1.0)]
    made = group(*"abcdefghijkl")
    rollouts = [
        replace(r, reward=reward, events=(Event(kind, 0),))
        for r, (kind, reward) in zip(made.rollouts, shown, strict=True)
    ]
    services = Services(threads=1)
    try:
        scores = await Spc().score(replace(made, rollouts=tuple(rollouts)), services)
        logged = services.metrics()
    finally:
        services.close()
    assert scores.values.tolist()[:5] == [1, 1, 1, 1, -1]
    assert math.isnan(scores.values[10])
    assert logged["reward/logged_spc_average"] == pytest.approx(0.7)
    assert logged["reward/logged_spc_harmonic"] == pytest.approx(0.685714, abs=1e-6)
