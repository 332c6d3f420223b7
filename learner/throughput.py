"""How fast a rank trains: tokens per second, and the share of its device's matrix rate that the model uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from cluster.types import AssembledBatch
from learner.step_plugin import StepPlugin, Update
from learner.types import Engine, ReferenceModel

FLOPS_PER_TOKEN = 6
"""Floating-point operations per parameter and token, forward and backward (PaLM, arXiv:2204.02311, appendix B), without
those of attention scores."""
SIDES = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices that are multiplied, by type of device."""
REPETITIONS = 5


class Throughput(StepPlugin):
    """Measure rank 0's optimizer steps, from the packed batch to the updated weights."""

    def __init__(self, num_parameters: int, matrix_rate: float, passes: int) -> None:
        """`matrix_rate` is in floating-point operations per second."""
        self._num_parameters, self._matrix_rate, self._passes = num_parameters, matrix_rate, passes
        self._begun, self._tokens = 0.0, 0

    def before_step(self, step: int, batch: AssembledBatch) -> None:
        self._begun, self._tokens = time.monotonic(), 0

    def before_updates(self, updates: Sequence[Update], engine: Engine, reference: ReferenceModel | None) -> None:
        micros = [micro for update in updates for micro in update.batch.micros]
        self._tokens = self._passes * sum(int((micro.rollout >= 0).sum()) for micro in micros)

    def after_step(self, step: int, batch: AssembledBatch, metrics: dict[str, float]) -> None:
        seconds = time.monotonic() - self._begun
        rate = self._tokens / seconds
        metrics["learner/tokens_per_s_per_device"] = rate
        metrics["learner/mfu_frac"] = FLOPS_PER_TOKEN * self._num_parameters * rate / self._matrix_rate


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second with which a device multiplies two square matrices, measured."""
    side = SIDES.get(device.type, SIDES["cpu"])
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))

    def seconds() -> float:
        begun = time.monotonic()
        product = left @ right
        float(product[0, 0])  # a GPU answers once it is done
        return time.monotonic() - begun

    seconds()
    return 2 * side**3 / statistics.median(seconds() for _ in range(REPETITIONS))
