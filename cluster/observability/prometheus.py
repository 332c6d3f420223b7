"""A run's numbers for Prometheus, by Ray's agents: `area/quantity_unit` is `ray_kanabo_area_quantity_unit` there.

Every node's agent serves them beside Ray's own; `deploy/grafana/` has dashboards that read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

from cluster.metrics import metric_of


def exported(name: str) -> str:
    """The name as Prometheus has it, without the `ray_` that Ray's agent puts before it."""
    return "kanabo_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


ASCII = {"α": "alpha", "β": "beta", "π": "pi", "√": "sqrt ", "×": "x", "−": "-", "…": "..."}
"""Ray's metrics refuse a description with any other character."""


def description(name: str) -> str:
    """Return what Prometheus says of a metric, in ASCII: its help and unit as they are declared, or its name."""
    metric = metric_of(name)
    text = f"{metric.help} [{metric.unit}]" if metric.help else name
    return text.translate(str.maketrans(ASCII)).encode("ascii", "replace").decode()


class PrometheusExporter:
    """The last value of every metric, labelled with the run. What is not finite is not exported.

    All are gauges, counts too: a run that is resumed goes back to what its checkpoint knew. Each is set again with
    every row: an agent of Ray forgets what is not, and some are known once a run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._last: dict[str, float] = {}

    def record(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in {**values, "learner/steps": step}.items():
            if value is None or not math.isfinite(value):
                continue
            if name not in self._gauges:
                gauge = Gauge(exported(name), description=description(name), tag_keys=("run",))
                gauge.set_default_tags({"run": self._run})
                self._gauges[name] = gauge
            self._last[name] = value
        for name, value in self._last.items():
            self._gauges[name].set(value)
