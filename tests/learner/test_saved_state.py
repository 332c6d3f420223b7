"""Learners that leave state for one another, one rank, then two, then one again: optimizer state and adapters.

One file, because its three runs of DeepSpeed are what takes time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.learner.test_engine import Results, assert_same, cases, distance

ALONE = ["leave:sgd:0", "leave:adamw:0", "lora:adamw:0", "lora_saved:0", "lora_recomputed"]
ALONE += ["lora_misfit:lm_head", "lora_misfit:no_proj"]
PAIR = ["leave:adamw:3", "arrive:adamw:3:1:0", "lora:adamw:3", "lora_saved:3"]
ALONE_VERIFY = [
    "leave:adamw:3", "arrive:adamw:3:1:0", "arrive:adamw:0:1:3", "lora:sgd:0", "lora:adamw:2",
]  # fmt: skip
PAIR_VERIFY = [
    "leave:sgd:3", "leave:adamw:2", "arrive:sgd:3:1:0", "arrive:adamw:1:1:3", "arrive:adamw:0:1:0",
    "lora:sgd:3", "lora:adamw:2",
]  # fmt: skip
ALONE_AGAIN_VERIFY = ["arrive:sgd:0:2:3", "arrive:adamw:0:2:3", "arrive:adamw:3:2:2", "arrive:adamw:1:2:2"]
"""What `make verify` adds: other optimizers and stages, and two ranks' state taken up by one."""
OFTEN = {"alone": ALONE, "pair": PAIR, "alone_again": []}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Results:
    return Results(tmp_path_factory, 1, ALONE, ALONE_VERIFY, module="jobs_saved")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, alone) -> Results:
    return Results(tmp_path_factory, 2, PAIR, PAIR_VERIFY, module="jobs_saved", after=alone)


@pytest.fixture(scope="module")
def alone_again(tmp_path_factory, pair) -> Results:
    return Results(tmp_path_factory, 1, [], ALONE_AGAIN_VERIFY, module="jobs_saved", after=pair)


EVERY = {"alone": ALONE + ALONE_VERIFY, "pair": PAIR + PAIR_VERIFY, "alone_again": ALONE_AGAIN_VERIFY}
ARRIVALS = cases(OFTEN, *((now, job) for now, jobs in EVERY.items() for job in jobs if job.startswith("arrive")))


@pytest.mark.parametrize(("now", "job"), ARRIVALS)
def test_other_ranks_and_stages_take_the_steps_that_would_have_come(request, now, job):
    _, optimizer, _, left_world, left_stage = job.split(":")
    left = request.getfixturevalue({"1": "alone", "2": "pair"}[left_world])
    expected, expected_metrics, end = left[f"leave:{optimizer}:{left_stage}"]
    weights, metrics, reached, resumed_at = request.getfixturevalue(now)[job]
    assert (resumed_at, reached) == (2, end)
    assert_same(weights, expected, atol=1e-5)
    for name in ("loss/policy", "learner/grad_norm", "learner/tokens", "learner/num_skipped"):
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-4, abs=1e-6), name
    assert metrics["learner/lr"] == expected_metrics["learner/lr"], "the schedule goes on where it was"


def test_what_is_compared_has_moved(alone, pair):
    one, _, _ = alone["leave:adamw:0"]
    other, _, _ = alone["leave:sgd:0"]
    assert distance(one, other) > 1e-3
    assert_same(pair["leave:adamw:3"][0], one)


STEPS = [
    ("alone", "lora:sgd:0"), ("alone", "lora:adamw:0"), ("alone", "lora:adamw:2"), ("pair", "lora:sgd:3"),
    ("pair", "lora:adamw:2"), ("pair", "lora:adamw:3"),
]  # fmt: skip
EVERYWHERE = cases(OFTEN, *STEPS)
SAVED = [("alone", "lora_saved:0"), ("pair", "lora_saved:3")]
SCALE = 8 / 4


@pytest.mark.parametrize(("ranks", "job"), EVERYWHERE)
def test_a_step_touches_adapters_and_nothing_else(request, ranks, job):
    found = request.getfixturevalue(ranks)[job]
    before, after = found["frozen"]
    assert_same(after, before, atol=0)
    assert len(before) >= 20
    assert all("lora_" not in name for name in before)
    assert all("lora_" in name for name in found["weights"])
    for name in found["initial"]:
        assert not torch.equal(found["weights"][name], found["initial"][name]), f"{name} was not trained"


@pytest.mark.parametrize(("ranks", "job"), EVERYWHERE[2:])
def test_stages_and_ranks_take_the_same_steps(request, alone, ranks, job):
    found, expected = request.getfixturevalue(ranks)[job], alone[f"lora:{job.split(':')[1]}:0"]
    assert_same(found["initial"], expected["initial"], atol=0)
    assert_same(found["weights"], expected["weights"])
    assert [name for name, _, _ in found["metadata"]] == list(found["weights"])


@pytest.mark.parametrize(("ranks", "job"), EVERYWHERE)
def test_the_reference_is_the_model_without_its_adapters(request, ranks, job):
    found = request.getfixturevalue(ranks)[job]
    assert found["rows"][0]["loss/kl_nats"] == pytest.approx(0.0, abs=1e-6)
    assert found["rows"][2]["loss/kl_nats"] > 1e-5
    assert_same(found["weights"], found["with_second_model"], atol=1e-6)


@pytest.mark.parametrize(("ranks", "job"), SAVED)
def test_an_export_is_an_adapter_that_merges_into_its_base(request, ranks, job):
    from peft import PeftModel

    found = request.getfixturevalue(ranks)[job]
    exported = Path(found["exported"])
    names = {path.name for path in exported.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    base = exported.parent / "model"
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    peft: torch.nn.Module = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), exported)
    merged = peft.merge_and_unload()  # type: ignore[operator]
    adapters = found["at_save"]
    for name, weight in merged.state_dict().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name]
        if f"{stem}.lora_A.weight" in adapters:
            expected = expected + SCALE * adapters[f"{stem}.lora_B.weight"] @ adapters[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    assert distance(merged.state_dict(), before) > 1e-4, "no adapter was merged"
    tokens = found["tokens"]
    with torch.no_grad():
        theirs = merged(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    once, twice = found["probed"]
    assert torch.equal(once, twice), "dropout must be off where nothing is trained"
    torch.testing.assert_close(once, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("ranks", "job"), SAVED)
def test_a_publication_and_a_checkpoint_hold_adapters_alone(request, ranks, job):
    found = request.getfixturevalue(ranks)[job]
    (path,) = found["published"]
    assert_same(load_file(path), found["at_save"], atol=0)
    full = (Path(found["exported"]).parent / "model" / "model.safetensors").stat().st_size
    assert Path(path).stat().st_size < 0.2 * full
    saved = [file for part in Path(found["saved"]).glob("*.safetensors") for file in load_file(part)]
    assert saved
    assert all("lora_" in name for name in saved)
    assert {name.split("/")[0] for name in saved} == {"weight", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(("ranks", "job"), SAVED)
def test_a_resumed_run_repeats_its_steps_dropout_included(request, ranks, job):
    found = request.getfixturevalue(ranks)[job]
    first, second = found["weights"]
    assert_same(second, first, atol=1e-7)
    assert distance(first, found["at_save"]) > 1e-5
    metrics, again = found["metrics"]
    assert again == pytest.approx(metrics, rel=1e-5)
    assert "learner.lora" in found["refusal"]


def test_layers_computed_again_meet_the_same_dropout(alone):
    plain, recomputed = alone["lora_recomputed"]
    assert_same(recomputed, plain, atol=1e-6)


def test_target_modules_that_cannot_have_adapters_are_named(alone):
    assert "output head" in alone["lora_misfit:lm_head"]["said"]
    assert "no_proj" in alone["lora_misfit:no_proj"]["said"]
