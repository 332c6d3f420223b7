"""A run's numbers for Prometheus, by Ray's agents: `area/quantity_unit` is `ray_kanabo_area_quantity_unit` there.

Every node's agent serves them beside Ray's own; `deploy/grafana/` has dashboards that read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge


def exported(name: str) -> str:
    """The name as Prometheus has it, without the `ray_` that Ray's agent puts before it."""
    return "kanabo_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


class Scraped:
    """The last value of every metric, labelled with the run. What is not finite is not exported."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def record(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in {**values, "learner/steps": step}.items():
            if value is None or not math.isfinite(value):
                continue
            if name not in self._gauges:
                gauge = Gauge(exported(name), description=name, tag_keys=("run",))
                gauge.set_default_tags({"run": self._run})
                self._gauges[name] = gauge
            self._gauges[name].set(value)
