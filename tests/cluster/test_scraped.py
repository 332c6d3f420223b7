"""What Ray's agents are told of a run's numbers."""

from __future__ import annotations

import math

import pytest
from ray.util.metrics import Counter, Gauge

from cluster.metrics import METRICS
from cluster.observability import grafana, prometheus


@pytest.fixture
def said(monkeypatch) -> list[tuple[str, float]]:
    """What is set or added, in order, in place of Ray's gauges and counters."""
    heard = []

    class Gauge:
        def __init__(self, name, **_):
            self.name = name

        def set_default_tags(self, tags):
            assert tags == {"run": "first"}

        def set(self, value):
            heard.append((self.name, value))

    class Counter(Gauge):
        def inc(self, value):
            heard.append((f"{self.name} +", value))

    monkeypatch.setattr(prometheus, "Gauge", Gauge)
    monkeypatch.setattr(prometheus, "Counter", Counter)
    return heard


def test_what_is_known_once_a_run_is_said_with_every_row(said):
    sink = prometheus.PrometheusExporter("first")
    sink.record(0, {"policy/logprob_diff_floor_nats": 1e-6})
    said.clear()
    sink.record(3, {"reward/mean": 0.5})
    assert dict(said) == {
        "kanabo_policy_logprob_diff_floor_nats": 1e-6, "kanabo_reward_mean": 0.5, "kanabo_learner_steps": 3,
    }  # fmt: skip


def test_what_is_not_known_is_not_said_and_takes_nothing_back(said):
    sink = prometheus.PrometheusExporter("first")
    sink.record(1, {"reward/mean": 0.5, "eval/accuracy": None, "loss/policy": math.nan})
    sink.record(2, {"reward/mean": math.nan})
    assert [value for name, value in said if name == "kanabo_reward_mean"] == [0.5, 0.5]
    assert {name for name, _ in said} == {"kanabo_reward_mean", "kanabo_learner_steps"}


def test_a_counter_grows_by_what_each_step_says_and_is_never_set(said):
    sink = prometheus.PrometheusExporter("first")
    for step, failed in enumerate((0.0, 2.0, None, math.nan, 3.0)):
        sink.record(step, {"reward/failed_scores": failed, "buffer/num_dropped_zero_variance": 1.0})
    assert [value for name, value in said if name == "kanabo_reward_failed_scores +"] == [2.0, 3.0]
    assert [value for name, value in said if name == "kanabo_buffer_num_dropped_zero_variance +"] == [1.0] * 5
    assert {name for name, _ in said if not name.endswith("+")} == {"kanabo_learner_steps"}


def test_a_panel_asks_for_the_total_of_a_counter():
    assert grafana.expression("reward/failed_scores") == 'ray_kanabo_reward_failed_scores_total{run=~"$run"}'
    dropped = '{__name__=~"ray_kanabo_buffer_num_dropped_.+_total", run=~"$run"}'
    assert grafana.expression("buffer/num_dropped_*") == dropped
    assert grafana.expression("reward/mean") == 'ray_kanabo_reward_mean{run=~"$run"}'


def test_ray_takes_the_description_of_every_metric():
    """Ray encodes descriptions as ASCII. Each is made in earnest, which needs no running Ray."""
    with pytest.raises(UnicodeEncodeError):
        Gauge("kanabo_test_pi", description="log π", tag_keys=("run",))
    for metric in METRICS.values():
        text = prometheus.description(metric.name)
        kind = {"gauge": Gauge, "counter": Counter}[metric.kind]
        kind(prometheus.exported(f"test/{metric.name}"), description=text, tag_keys=("run",))
        assert text.count("?") == f"{metric.help} {metric.unit}".count("?"), "a character without a spelling in ASCII"
    assert "log pi" in prometheus.description("policy/behaviour_kl_nats")
    assert prometheus.description("mine/größe") == "mine/gr??e"
