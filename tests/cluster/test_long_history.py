"""A run of very many steps: its metrics are read row by row."""

from __future__ import annotations

import json
import tracemalloc

from cluster.config import RunConfig
from cluster.driver.health import Health
from cluster.observability import metrics
from cluster.observability.metrics import Recorder

ROW = {f"learner/quantity_{i}": float(i) for i in range(40)} | {"learner/tokens": 1.0}


def peak_bytes(tmp_path, steps: int) -> int:
    """Most memory that a start of the run takes for what it recorded before."""
    directory = tmp_path / str(steps)
    directory.mkdir()
    with (directory / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, **ROW}) + "\n" for step in range(1, steps + 1))
    tracemalloc.start()
    recorder = Recorder(directory, RunConfig().tracking.model_copy(update={"tensorboard": False}), "run", {})
    recorder.forget_after(steps - 10)
    Health(RunConfig(), lambda step, message: None, metrics.rows(directory))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    recorder.close()
    assert sum(1 for _ in metrics.rows(directory)) == steps - 10
    return peak


def test_a_start_takes_as_much_memory_after_many_steps_as_after_few(tmp_path):
    peak_bytes(tmp_path, 50)  # imports and caches
    assert peak_bytes(tmp_path, 5000) < 1.5 * peak_bytes(tmp_path, 500)
