"""Steps that can be run again: what a step trained on, the state before it, and what came out.

    replay/step_N/   batch.msgpack   the batch record and its groups
                     learner/      weights and optimizer as the step found them
                     result.json   its metrics and a digest of the weights it left

Every `checkpoint.record_every_steps`-th step is kept, and every one whose gradient was not finite.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.config import RunConfig
from cluster.errors import ConfigError, Diverged
from cluster.process.disk import Written, written_at_once
from cluster.process.lock import readable
from cluster.types import AssembledBatch, BatchRecord, Group, decode, encode
from learner.controllers.apply import steered
from learner.engine.deepspeed_engine import DeepSpeedEngine, join
from learner.pack import mini_batches
from learner.reference import reference_for, resolved
from learner.step_plugin import StepPlugin
from learner.train import Objective, optimize
from learner.types import Engine

MAX_SKIPPED_IN_A_ROW = 3
BATCH, OLD_BATCH = "batch.msgpack", "cut.msgpack"
"""File of a recorded step's batch, and its name in runs of version 0.1."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A step's input."""

    record: BatchRecord
    groups: tuple[Group, ...]
    epoch: int
    """The learner's, when it took the step."""
    reference: str = ""
    """Directory of the reference model then, where `learner.reference` moves."""


class StepRecorder(StepPlugin):
    """Keeps steps in `directory`. Its calls are collective: every rank makes them."""

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        epoch: int,
        every: int,
        *,
        loss: str,
        reference: Callable[[], str] = str,
        written: Written = written_at_once,
    ) -> None:
        self._written = written
        self._directory, self._engine, self._epoch, self._every = directory, engine, epoch, every
        self._loss, self._reference = loss, reference
        self._skipped, self._in_a_row = engine.num_skipped, 0

    def before_step(self, step: int, batch: AssembledBatch) -> None:
        """Keep the step's input, if it is one of those to keep."""
        if self._wanted(step):
            self._keep(step, batch)

    def after_step(self, step: int, batch: AssembledBatch, metrics: dict[str, float]) -> None:
        """Keep the step's result. Raises Diverged when too many gradients in a row were not finite."""
        skipped = self._engine.num_skipped > self._skipped
        self._skipped = self._engine.num_skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if skipped and not self._wanted(step):
            self._keep(step, batch)  # a skipped step has changed nothing: this is the state it found
        if skipped or self._wanted(step):
            self._conclude(step, metrics)
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"the gradients of {self._in_a_row} steps in a row, the last {step + 1}, were not finite; their "
                f"updates were skipped. Their batches are in {self._directory}: `python -m cluster.commands.replay "
                f"{self._directory.parent} --step {step + 1}` runs the last again and names the rollouts. "
                f"{self._cause(metrics)}"
            )

    def _cause(self, metrics: dict[str, float]) -> str:
        loss = metrics.get("loss/policy", 0.0)
        known = math.isfinite(metrics.get("loss/ratio_mean", math.nan) + metrics.get("loss/value", 0.0))
        if known and not math.isfinite(loss):
            return (
                f"learner.loss.use = '{self._loss}' gave {loss:g} for finite log-probs: mend it, or look for a reward "
                "or advantage of enormous size."
            )
        return (
            "Usual causes: learner.schedule.lr or learner.value.lr too high, a reward or advantage of enormous size, a "
            "loss that overflows."
        )

    def _wanted(self, step: int) -> bool:
        return bool(self._every) and (step + 1) % self._every == 0

    def _folder(self, step: int) -> Path:
        return self._directory / f"step_{step + 1}"

    def _keep(self, step: int, batch: AssembledBatch) -> None:
        folder = self._folder(step)

        def begin() -> None:
            if self._engine.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                kept = Kept(batch.record, tuple(batch.groups), self._epoch, self._reference())
                (folder / BATCH).write_bytes(encode(kept))

        for stage in (begin, lambda: self._engine.save(folder / "learner")):
            self._written(stage, _named(step), self._engine.agree)

    def _conclude(self, step: int, metrics: dict[str, float]) -> None:
        result = outcome(self._engine, metrics)

        def write() -> None:
            if self._engine.rank == 0:
                (self._folder(step) / "result.json").write_text(json.dumps(result, indent=2) + "\n")
                readable(self._folder(step))

        self._written(write, _named(step), self._engine.agree)


def _named(step: int) -> str:
    return f"what replays step {step + 1}"


def outcome(engine: Engine, metrics: dict[str, float]) -> dict[str, Any]:
    """What a step came to, comparable to the last bit: floats as `float.hex`. Collective."""
    digest = hashlib.sha256()
    for name, tensor in engine.weights():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    names = sorted(name for name in metrics if name.startswith(("loss/", "value/", "learner/grad_norm")))
    compared = {name: float(metrics[name]).hex() for name in names}
    return {"weights_sha256": digest.hexdigest(), "threads": torch.get_num_threads(), "metrics": compared}


def load(folder: Path) -> tuple[Kept, dict[str, Any]]:
    """A kept step and its result. Raises ConfigError, naming those there are."""
    if not (folder / "result.json").exists():
        there = sorted((p.parent.name.removeprefix("step_") for p in folder.parent.glob("step_*/result.json")), key=int)
        raise ConfigError(
            f"'{folder}' holds no recorded step. "
            + (f"There are: {', '.join(there)}." if there else "None was recorded: set checkpoint.record_every_steps.")
        )
    stored = folder / BATCH if (folder / BATCH).exists() else folder / OLD_BATCH
    kept = decode(stored.read_bytes(), Kept)
    return kept, json.loads((folder / "result.json").read_text())


def rerun(
    folder: Path, config: RunConfig, model_dir: str, rank: int, world: int, master: tuple[str, int]
) -> dict[str, Any]:
    """Run a kept step again on one rank; returns its outcome, and the rollouts whose loss or gradient is not finite."""
    kept, before = load(folder)
    if kept.reference:
        if not Path(kept.reference).is_dir():
            raise ConfigError(
                f"The reference model of this step, '{kept.reference}', has been removed. Run a later step again, or "
                "raise checkpoint.keep_last for the next run."
            )
        config = config.model_copy(update={"learner": config.learner.model_copy(update={"reference": kept.reference})})
    section = steered(resolved(config, folder.parents[1], model_dir), kept.record.settings)
    torch.set_num_threads(before["threads"])  # sums over threads differ in their last bits
    join(rank, world, master, timeout_s=section.collective_timeout_s)
    engine = DeepSpeedEngine(model_dir, section, config.seed)
    torch.set_num_threads(before["threads"])
    engine.load(folder / "learner")
    engine.step = kept.record.step
    objective = Objective.of(section)
    reference = reference_for(section, model_dir, engine)
    batches = mini_batches(
        list(kept.groups), kept.record, section, rank, world, epoch=kept.epoch, append=objective.append
    )
    metrics = optimize(batches, objective, engine, reference)
    return {**outcome(engine, metrics), "suspects": suspects(kept)}


def suspects(kept: Kept) -> list[str]:
    """Rollouts whose stored numbers alone spoil a gradient: enormous or non-finite advantages and log-probs."""
    found = []
    for group, rewards, advantages in zip(kept.groups, kept.record.rewards, kept.record.advantages, strict=True):
        for i, (rollout, reward, credit) in enumerate(zip(group.rollouts, rewards, advantages, strict=True)):
            worst = float(np.abs(credit).max(initial=0.0))
            if np.isfinite(reward) and not (worst < 1e6 and np.isfinite(rollout.logprobs).all()):
                found.append(
                    f"group {group.id}, rollout {i}: reward {reward:g}, largest advantage {worst:g}, "
                    f"log-probs {'finite' if np.isfinite(rollout.logprobs).all() else 'not finite'}"
                )
    return found
