"""vLLM's own metrics through Ray: Prometheus has `ray_vllm_…` beside the run's numbers, the run as `model_name`."""

from __future__ import annotations

from typing import Any

import ray
from ray.util import metrics
from vllm.v1.metrics import ray_wrappers
from vllm.v1.metrics.ray_wrappers import RayHistogramWrapper, RayPrometheusStatLogger

from cluster.config import TrackingSection

# vLLM does without Ray's metrics where Ray Serve cannot be imported, of which it wants nothing but a replica's id.
ray_wrappers.ray_metrics = metrics  # pyright: ignore[reportPrivateImportUsage]

KEPT_HISTOGRAMS = ("vllm:request_queue_time_seconds", "vllm:e2e_request_latency_seconds")
"""vLLM has twenty, some of which hear of every token: a small model samples thousands a second."""


class _Histogram(RayHistogramWrapper):
    """One that is not kept hears nothing."""

    def __init__(self, name: str, **how: Any) -> None:
        self._kept = name in KEPT_HISTOGRAMS
        if self._kept:
            super().__init__(name, **how)

    def labels(self, *labels: Any, **named: Any) -> Any:
        return super().labels(*labels, **named) if self._kept else self

    def observe(self, value: int | float) -> None:
        if self._kept:
            super().observe(value)


class RayStats(RayPrometheusStatLogger):
    """All gauges and counters, and `KEPT_HISTOGRAMS`."""

    _histogram_cls = _Histogram


def stat_loggers(tracking: TrackingSection) -> list[Any]:
    """For an engine of a run; none outside of Ray, which would carry them."""
    return [RayStats] if tracking.engine_stats and ray.is_initialized() else []
