"""Memories in the loop, over a real buffer: what is replayed and set, and the same again after a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.config import RunConfig
from cluster.types import Manifest
from learner.advantages.estimators import GroupAdvantage
from learner.batch import assemble as assembling
from learner.batch.experience_replay import Spear
from learner.controllers import CONTROLLERS
from learner.controllers.apply import Steering
from learner.plugin_state import ADVANTAGE, EXPERIENCE_REPLAY, PluginState
from learner.train import train
from tests.cluster.pipeline import Limits, Pipeline
from tests.learner.groups import each
from tests.learner.runs import Calls, run_of
from tests.learner.test_train import TableEngine, Workers, mix, rows, section_of

LIMITS = Limits(4, max_staleness=1)


@pytest.fixture
def workers(buffer, monkeypatch) -> Workers:
    monkeypatch.setattr(assembling, "POLL_S", 0.2)
    return Workers(Pipeline(buffer, LIMITS))


def memory() -> PluginState:
    fading = CONTROLLERS["cosine"].model_validate({"key": "learner.loss.entropy_coef", "start": 0.1, "steps": 4})
    replay = Spear(buffer_size=8, trigger=1.0, tolerate_steps=2, ramp_steps=4)
    return PluginState({ADVANTAGE: GroupAdvantage(), EXPERIENCE_REPLAY: replay, "controllers.0": fading})


def trained(
    workers: Workers, engine: TableEngine, remembered: PluginState, checkpoint: Any = lambda done: None
) -> None:
    steering = Steering(RunConfig(), lambda config, state: (each(mix), None), remembered)
    plugins = [steering, Calls(at_step=workers.sample, checkpoint=checkpoint)]
    buffer, epoch = workers.pipeline.buffer, workers.pipeline.epoch
    train(run_of(section_of(8), buffer, engine, workers, each(mix), epoch=epoch, state=remembered, plugins=plugins))


def told(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k.startswith(("replay/", "settings/", "learner/rollouts", "loss/"))}


def test_steps_repeated_after_a_crash_replay_the_same_and_leave_the_same_memory(workers, tmp_path):
    buffer, engine, first = workers.pipeline.buffer, TableEngine(), memory()
    saved: dict[int, tuple[Manifest, np.ndarray]] = {}

    def checkpoint(done: int) -> None:
        if done == 3:
            first.save(tmp_path)
            saved[done] = buffer.snapshot("policy", workers.pipeline.epoch, done), engine.table.detach().numpy().copy()

    trained(workers, engine, first, checkpoint)
    before = [told(row.metrics) for row in rows(buffer)]
    replayed = [row["replay/num_rollouts"] for row in before]
    assert max(replayed) == 8
    assert 0 in replayed, "the buffer is emptied by a replay"
    assert max(replayed[3:]) > 0, "the steps that are repeated must have something to replay"
    record = buffer.recorded("policy", replayed.index(8))
    assert record is not None
    own = sum(np.isfinite(r).sum() for r in record.rewards)
    assert before[record.step]["learner/rollouts"] == own + 8
    assert all(r.advantages[0][0] > 0 for r in record.replayed), "only what is above the baseline"
    assert record.settings == {"learner.loss.entropy_coef": before[record.step]["settings/learner.loss.entropy_coef"]}
    assert [row["settings/learner.loss.entropy_coef"] for row in before[4:]] == [0.0] * 4

    manifest, table = saved[3]
    again = memory()
    again.load(tmp_path)
    second = TableEngine()
    second.step = 3
    second.table.data.copy_(engine.table.new_tensor(table))
    workers.pipeline.start(manifest)
    trained(workers, second, again)
    after = [told(row.metrics) for row in rows(buffer)[8:]]
    assert [row["replay/num_rollouts"] for row in after] == replayed[3:]
    for one, other in zip(before[3:], after, strict=True):
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    assert again.of(EXPERIENCE_REPLAY) == first.of(EXPERIENCE_REPLAY)
    assert again.settings() == first.settings()
