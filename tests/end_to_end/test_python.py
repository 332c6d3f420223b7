"""A run that is started from Python, in a directory whose files have the names of Kanabo's packages."""

from __future__ import annotations

import linecache
import os
import sys
import types

import numpy as np
import pytest

import kanabo
from tests.test_docs import blocks

pytestmark = pytest.mark.job

OVERRIDES = {
    "run.name": "digits",
    "engine": {"use": "tests.fakes:FakeEngine", "max_model_len": 320, "max_num_seqs": 128},
    "learner": {"steps": 3, "groups_per_step": 8, "drop_zero_variance": False},
    "rollout.group_size": 8,
    "evaluation.max_tasks": 64,
    "tracking.live_table": False,
}


def run_block(source: str, name: str, module: types.ModuleType) -> None:
    """Run a block of the page as a notebook runs a cell."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), vars(module))


@pytest.mark.verify
def test_the_page_trains_beside_files_that_have_the_names_of_packages(tmp_path, monkeypatch, capsys):
    for name in ("actors", "learner", "rewards"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is the file of a user')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "disabled")
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    define, train, _ = blocks("python", "python")
    run_block(define, "define", module)
    vars(module)["settings"] = kanabo.load(vars(module)["settings"], **OVERRIDES)
    run_block(train, "train", module)
    run = vars(module)["run"]
    assert run.directory == tmp_path / "runs" / "digits"
    assert run.checkpoint == run.directory / "checkpoints" / "global_step_3"
    groups = list(run.groups())
    assert groups
    assert {group.step for group in groups} <= {1, 2, 3}
    assert all(set(group.scores) == {"exact", "digits"} for group in groups)
    assert all(np.isfinite(score.values).all() for group in groups for score in group.scores.values())
    assert "this is the file of a user" not in run.log.read_text()
    assert "metrics: http" in capsys.readouterr().out, "what the run prints is printed"
    assert run.samples()


@pytest.mark.verify
def test_stop_ends_a_run_with_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "disabled")
    overrides = OVERRIDES | {"run": {"dir": str(tmp_path), "name": "long"}, "learner.steps": 100_000}
    overrides.pop("run.name")
    run = kanabo.run("quickstart", **overrides)
    try:
        for _ in run.follow():
            if any("learner/step_s" in row for row in run.metrics()):
                break
        summary = run.stop()
    finally:
        if run.running:
            run.stop()
    assert summary is not None
    assert summary["steps"] >= 1
    assert run.checkpoint is not None
    assert list(run.groups(step=1))
    assert not list(run.groups(step=summary["steps"] + 1))
