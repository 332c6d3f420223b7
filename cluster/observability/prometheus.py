"""A run's numbers for Prometheus, by Ray's agents: `area/quantity_unit` is `ray_kanabo_area_quantity_unit` there.

Every node's agent serves them beside Ray's own; `deploy/grafana/` has dashboards that read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TypeVar

from ray.util.metrics import Counter, Gauge

from cluster.metrics import metric_of

Made = TypeVar("Made", Counter, Gauge)


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


def series(name: str) -> str:
    """Return the name of the time series that Prometheus has of a metric; a counter's ends in `_total`."""
    return f"ray_{exported(name)}{'_total' if metric_of(name).kind == 'counter' else ''}"


class PrometheusExporter:
    """A run's metrics in the types that they are declared with, labelled with the run. What is not finite is left out.

    A gauge has the last value, and is set again with every row: an agent of Ray forgets what is not, and some are known
    once a run. A counter grows by the value of every row, and is there from the first that is above 0. It counts from 0
    again in a run that is resumed, as Prometheus expects of a process that is started again.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._last: dict[str, float] = {}

    def record(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in {**values, "learner/steps": step}.items():
            if value is None or not math.isfinite(value):
                continue
            if metric_of(name).kind == "gauge":
                self._last[name] = value
            elif value > 0:
                self._made(self._counters, Counter, name).inc(value)
        for name, value in self._last.items():
            self._made(self._gauges, Gauge, name).set(value)

    def _made(self, known: dict[str, Made], type_: type[Made], name: str) -> Made:
        """Return the exported metric of that name, made when it is first needed."""
        if name not in known:
            known[name] = type_(exported(name), description=description(name), tag_keys=("run",))
            known[name].set_default_tags({"run": self._run})
        return known[name]
