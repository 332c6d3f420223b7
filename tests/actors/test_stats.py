"""vLLM's metrics through Ray: they need no Ray Serve, and most histograms hear nothing."""

from __future__ import annotations

from actors.stats import RayStats, stat_loggers
from cluster.config import TrackingSection


def test_metrics_can_be_made_where_ray_serve_is_not_installed():
    RayStats._gauge_cls("vllm:a_gauge", "", ["model_name"]).labels("run").set(1.0)
    RayStats._counter_cls("vllm:a_counter", "", ["model_name"]).labels("run").inc()
    kept, silent = (
        RayStats._histogram_cls(name=name, documentation="", labelnames=["model_name"], buckets=[1.0]).labels("run")
        for name in ("vllm:e2e_request_latency_seconds", "vllm:inter_token_latency_seconds")
    )
    kept.observe(0.5)
    silent.observe(0.5)
    assert kept.metric.info["name"] == "vllm_e2e_request_latency_seconds"
    assert not hasattr(silent, "metric"), "nothing of Ray's is behind it"


def test_an_engine_outside_of_ray_has_none():
    assert stat_loggers(TrackingSection()) == []
