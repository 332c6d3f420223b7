"""Declared metrics: which declaration a name has, how a step's parts are reduced, and metrics of a plug-in's own."""

from __future__ import annotations

import math

import pytest

from cluster.metrics import METRICS, SECTIONS, Metric, declare, metric_of
from learner.batch.assemble import _mixed_metrics


@pytest.fixture
def own_metrics():
    """A place for declarations of a test's own."""
    before, sections = dict(METRICS), {name: list(rows) for name, rows in SECTIONS.items()}
    yield
    METRICS.clear()
    METRICS.update(before)
    SECTIONS.clear()
    SECTIONS.update(sections)
    metric_of.cache_clear()


@pytest.mark.parametrize(
    ("name", "declared", "reduce"),
    [
        ("reward/mean", "reward/mean", "mean"),
        ("reward/correct_mean", "reward/NAME_mean", "mean"),
        ("reward/failed_scores", "reward/failed_scores", "sum"),
        ("buffer/num_dropped_missing:judge.a", "buffer/num_dropped_REASON", "sum"),
        ("learner/num_skipped", "learner/num_skipped", "last"),
        ("mine/num_things", "mine/num_things", "mean"),
    ],
)
def test_a_name_has_its_own_declaration_or_its_familys(name, declared, reduce):
    assert (metric_of(name).name, metric_of(name).reduce) == (declared, reduce)


def test_the_most_specific_family_is_meant():
    assert metric_of("reward/a_known_frac").name == "reward/NAME_known_frac"
    assert metric_of("reward/logged_known_frac").name in ("reward/NAME_known_frac", "reward/logged_NAME")


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 2.0), ("sum", 6.0), ("last", 1.0), ("max", 3.0)])
def test_what_is_unknown_is_left_out_of_a_reduction(reduce, expected):
    assert Metric("a/b", reduce, "", "").reduced([2.0, math.nan, 3.0, 1.0, math.inf]) == expected
    assert math.isnan(Metric("a/b", reduce, "", "").reduced([math.nan]))


def test_a_counter_is_a_sum():
    with pytest.raises(ValueError, match="'a/b' is a counter and reduced by 'mean'"):
        Metric("a/b", "mean", "", "", kind="counter")


def test_a_plugins_metric_is_reduced_as_it_declares(own_metrics):
    rows = [{"mine/retries": 1.0}, {"mine/retries": 2.0, "mine/other": 4.0}]
    assert metric_of("mine/retries").reduce == "mean"
    declare(Metric("mine/retries", "sum", "count", "calls that were repeated"))
    assert _mixed_metrics(rows) == {"mine/retries": 3.0, "mine/other": 4.0}
    declare(Metric("mine/retries", "sum", "count", "calls that were repeated"))
    with pytest.raises(ValueError, match="'mine/retries' is declared twice"):
        declare(Metric("mine/retries", "mean", "count", "something else"))
