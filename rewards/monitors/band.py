"""A metric that a healthy run keeps within bounds, whatever else happens."""

from __future__ import annotations

import math

from pydantic import PositiveInt, PrivateAttr, model_validator

from rewards.monitors.base import Alarm, Monitor, Row, known


class Band(Monitor):
    """Alarms when a metric has been outside its bounds for several of its rows running. One alarm until it is back.

    The mean reward of solutions in `comas` is such a one: it stays near 0.5, and rises to about 0.8 where evaluating or
    scoring has failed (CoMAS, arXiv:2510.08529).
    """

    metric: str
    """Its name in metrics.jsonl."""
    low: float = -math.inf
    """Below this it is outside."""
    high: float = math.inf
    """Above this it is outside."""
    patience: PositiveInt = 3
    """Rows of it in a row that must be outside."""
    _outside: int = PrivateAttr(default=0)
    _good: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _bounded(self) -> Band:
        if not self.low < self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise ValueError(f"low = {self.low:g} and high = {self.high:g} bound nothing; low must be below high.")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.metric,)

    def observe(self, step: int, row: Row) -> Alarm | None:
        value = known(row, self.metric)
        if value is None:
            return None
        if self.low <= value <= self.high:
            self._outside, self._good = 0, step
            return None
        self._outside += 1
        if self._outside != self.patience:
            return None
        said = (
            f"{self.metric} is {value:.3g}, and was outside of {self.low:g} to {self.high:g} {self.patience} times "
            "running. Look at samples.jsonl for what it has come to reward."
        )
        return Alarm("band", step, self.metric, said, self._good)
