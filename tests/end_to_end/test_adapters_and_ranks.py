"""The whole pipeline with adapters, and runs that go on with other ranks: by the same command with another number."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.end_to_end import jobs

pytestmark = [pytest.mark.job, pytest.mark.verify]
FAKE = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.drop_zero_variance=false"]


def go_on(tmp_path, overrides: list[str], *, steps: int, ranks: int, zero_stage: int) -> dict:
    """The run up to `steps`; its summary, of which every start so far is a part."""
    log = tmp_path / "log"
    numbers = [f"learner.steps={steps}", f"learner.ranks={ranks}", f"learner.zero_stage={zero_stage}"]
    command = [*overrides, f"run.dir={tmp_path}", "run.name=run", *numbers]
    assert jobs.run(command, log=log, timeout_s=400) == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / "run")
    assert summary["steps"] == steps
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert summary["max_staleness_observed"] <= 1
    rows = [r["step"] for r in jobs.rows(tmp_path / "run") if "learner/step_s" in r]
    assert rows == list(range(1, steps + 1)), "a step is missing or was recorded twice"
    return summary


@pytest.mark.timeout(1300)
def test_a_run_goes_on_with_more_ranks_and_with_fewer(tmp_path):
    options = [*FAKE, "learner.schedule.warmup_steps=20", "learner.schedule.decay=constant"]
    for steps, ranks, zero_stage in ((3, 1, 0), (6, 2, 3), (9, 1, 2)):
        go_on(tmp_path, options, steps=steps, ranks=ranks, zero_stage=zero_stage)
    rates = [r["learner/lr"] for r in jobs.rows(tmp_path / "run") if "learner/lr" in r]
    assert rates == pytest.approx([4e-4 * (step + 1) / 20 for step in range(9)]), "the schedule started anew"


@pytest.mark.timeout(1000)
def test_adapters_go_the_whole_lap_and_on_with_two_ranks(tmp_path):
    from cluster.commands.export import export

    options = [*jobs.TINY, "learner.lora.rank=8", "learner.lora.alpha=16", "learner.loss.kl_coef=0.01"]
    options += ["learner.schedule.lr=5e-3", "weights.probe_every=1"]
    for steps, ranks, zero_stage in ((4, 1, 0), (7, 2, 3)):
        summary = go_on(tmp_path, options, steps=steps, ranks=ranks, zero_stage=zero_stage)
        assert summary["logprob_diff_max_nats"] < 1e-3, "the engine must sample with the learner's adapter"
    checkpoint = tmp_path / "run" / "checkpoints" / "global_step_7"
    names = {path.name for path in checkpoint.iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    moved = [v.abs().max() for n, v in load_file(checkpoint / "adapter_model.safetensors").items() if "lora_B" in n]
    assert min(moved) > 1e-4, "an adapter that was not trained proves nothing"
    assert json.loads((checkpoint / "learner" / "state.json").read_text())["updates"] == 7
    export(checkpoint, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert sum(p.numel() for p in merged.parameters()) > 1e6
