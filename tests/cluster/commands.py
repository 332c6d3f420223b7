"""What tests of the commands share: calling one, and a run directory to call it on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cluster.config import RunConfig, dump
from cluster.storage import checkpoint
from cluster.types import Manifest


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def make_run(base: Path, name: str, *, steps: int = 2, rows: int = 2, url: str | None = None) -> Path:
    """A run directory as `run` leaves it after `rows` steps, without a summary."""
    run = base / name
    run.mkdir(parents=True)
    tree = {"run": {"name": name}, "learner": {"steps": steps}, "buffer": {"url": url} if url else {}}
    (run / "id").write_text(name)
    (run / "config.toml").write_text(dump(RunConfig.model_validate(tree)))
    lines: list[dict[str, Any]] = [{"step": 0, "eval/accuracy": 0.25}]
    for step in range(1, rows + 1):
        lines.append({"step": step, "learner/step_s": 1.0, "reward/mean": step / 10, "policy/staleness_steps": None})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def end(run: Path, *, error: bool = False) -> None:
    if error:
        (run / "error.txt").write_text("trace")
    (run / "summary.json").write_text("{}")


def write_checkpoint(run: Path, step: int) -> Path:
    target = run / "checkpoints" / f"global_step_{step}"
    (target / "learner").mkdir(parents=True)
    (target / "learner" / "state.json").write_text("{}")
    (target / "config.json").write_text(json.dumps({"step": step}))
    save_file({"weight": np.random.default_rng(step).random(100)}, target / "model.safetensors")
    checkpoint.commit(target, Manifest("policy", step, 1, 0, (), (), ()))
    return target
