"""The DeepSpeed engine, in processes of its own: one rank, and two ranks under ZeRO."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import random_llama

ROOT = Path(__file__).parents[2]
SPLITS = [(0, "single"), (0, "backwards-wide"), (3, "backwards-single"), (3, "wide")]
PPO = ["ppo:0", "ppo:1", "ppo:2", "ppo:3", "ppo:0:single", "ppo:3:wide"]
SHARED = ["shared:0", "shared:0:critic", "shared:0:lora", "shared:3", "shared:3:lora", "shared:0:idle", "shared:3:idle"]
ONE_RANK = [
    "on_policy:sgd", "on_policy:adamw", "trajectory:sgd:0", "trajectory:adamw:0", "trajectory:sgd:2",
    "trajectory:adamw:1:bfloat16", "resume:1::bfloat16", "export:0", "unsavable", "not_finite:0", "preferences:0",
    "reference", "entropy_bonus", "trajectory:sgd:0:float32:backwards-wide", "ppo:0", "resume:0:critic",
    "critic_in_bf16", "recomputed", "shared:0", "shared:0:critic",
]  # fmt: skip
TWO_RANKS = [
    "trajectory:adamw:3", "resume:3", "export:3", "preferences:3", "not_finite:3", "trajectory:sgd:3:float32:wide",
    "ppo:3:wide", "resume:3:critic", "shared:3:lora", "shared:3:idle",
]  # fmt: skip
ONE_RANK_VERIFY = [
    "trajectory:sgd:1", "trajectory:sgd:3", "resume:0", "resume:2", "resume:3",
    *(f"trajectory:sgd:{stage}:float32:{layout}" for stage, layout in SPLITS if layout != "backwards-wide"), *PPO[1:],
    "shared:0:lora", "shared:3", "shared:3:lora", "shared:0:idle", "shared:3:idle",
]  # fmt: skip
TWO_RANKS_VERIFY = [
    "trajectory:sgd:0", "trajectory:sgd:1", "trajectory:sgd:2", "trajectory:sgd:3", "preferences:0", "not_finite:0",
    *(f"trajectory:sgd:{stage}:float32:{layout}" for stage, layout in SPLITS[:3]), *PPO[:-1],
    "shared:0", "shared:0:critic", "shared:0:lora", "shared:3", "shared:0:idle",
]  # fmt: skip
"""Every combination of a stage, a layout and a number of ranks that the lists above do not have: `make verify`."""


def run_jobs(
    directory: Path, world: int, jobs: list[str], *, module: str = "jobs", timeout_s: float = 240
) -> dict[str, Any]:
    random_llama(directory / "model", tied=True, scale=2.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    logs = [directory / f"rank{rank}.log" for rank in range(world)]
    ranks = []
    for rank, log in enumerate(logs):
        arguments = [directory / "out.pt", rank, world, port, directory / "model", *jobs]
        with log.open("w") as file:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"tests.learner.{module}", *map(str, arguments)],
                    cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    try:
        codes = [process.wait(timeout_s) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)
    return torch.load(directory / "out.pt", weights_only=False)


class Results:
    """What jobs on so many ranks answer. A list of jobs runs once, when its first answer is read."""

    def __init__(
        self,
        factory: pytest.TempPathFactory,
        world: int,
        *lists: list[str],
        module: str = "jobs",
        after: Results | None = None,
    ) -> None:
        """`after` has jobs that leave state for these: its list of the same place runs before, and those in front."""
        self._factory, self._world, self._lists, self._module, self._after = factory, world, lists, module, after
        self._answers: dict[int, dict[str, Any]] = {}

    def run(self, place: int) -> dict[str, Any]:
        """Run the list at `place`, unless it ran before. A failure is the answer of each of its jobs."""
        if place not in self._answers:
            jobs = self._lists[place]
            for earlier in range(place + 1) if self._after else ():
                self._after.run(earlier)
            try:
                directory = self._factory.mktemp(f"{self._module}-{self._world}-{place}")
                self._answers[place] = run_jobs(directory, self._world, jobs, module=self._module) if jobs else {}
            except (AssertionError, subprocess.TimeoutExpired) as error:
                self._answers[place] = dict.fromkeys(jobs, str(error))
        return self._answers[place]

    def __getitem__(self, job: str) -> Any:
        answers = self.run(next(place for place, jobs in enumerate(self._lists) if job in jobs))
        assert job in answers, f"an earlier job failed: {list(answers.values())[-1]}"
        assert not isinstance(answers[job], str), answers[job]
        return answers[job]


def cases(often: dict[str, list[str]], *pairs: tuple[str, str]) -> list[Any]:
    """Parameters `ranks`, `job`; those that are not in `often` are marked verify."""
    return [pytest.param(*pair, marks=() if pair[1] in often[pair[0]] else pytest.mark.verify) for pair in pairs]


OFTEN = {"one": ONE_RANK, "two": TWO_RANKS}


def on_both(jobs: list[str]) -> list[Any]:
    return cases(OFTEN, *((ranks, job) for ranks in OFTEN for job in jobs))


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Results:
    return Results(tmp_path_factory, 1, ONE_RANK, ONE_RANK_VERIFY)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Results:
    return Results(tmp_path_factory, 2, TWO_RANKS, TWO_RANKS_VERIFY)


def assert_same(weights: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert set(weights) == set(other)
    for name in weights:
        torch.testing.assert_close(weights[name], other[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def distance(weights: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((weights[n] - other[n]).abs().max()) for n in other)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_max_staleness_0_equals_a_plain_on_policy_loop(one, optimizer):
    found = one[f"on_policy:{optimizer}"]
    assert distance(found["weights"], found["initial"]) > 1e-3, "nothing was learnt, so nothing was compared"
    assert_same({n: w for n, w in found["weights"].items() if n in found["expected"]}, found["expected"])


def test_on_policy_the_ratio_is_one_and_nothing_is_clipped(one):
    rows = one["on_policy:sgd"]["rows"]
    assert len(rows) == one["on_policy:sgd"]["reached"] == 4
    for row in rows:
        assert row["loss/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert row["loss/clipped_frac"] == 0
        assert row["policy/staleness_max_steps"] == 0


def test_weights_are_published_before_they_are_released_and_first_of_all(one):
    order = one["on_policy:sgd"]["order"]
    expected = [("publish", 0)]
    for step in range(1, 5):
        expected += [("publish", step), ("release", step), ("step", step)]
    assert order == expected


@pytest.mark.parametrize(("ranks", "job"), cases(OFTEN, *(("one", f"trajectory:sgd:{stage}") for stage in (1, 2, 3))))
def test_zero_stages_take_the_same_steps(one, ranks, job):
    weights, metrics = one[job]
    expected, plain = one["trajectory:sgd:0"]
    assert_same(weights, expected)
    assert metrics["learner/grad_norm"] == pytest.approx(plain["learner/grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("ranks", "job"),
    cases(OFTEN, *(("two", f"trajectory:{step}") for step in ("sgd:0", "sgd:1", "sgd:2", "sgd:3", "adamw:3"))),
)
def test_two_ranks_take_the_step_of_one(one, two, ranks, job):
    weights, metrics = two[job]
    expected, expected_metrics = one[f"{job[:-1]}0"]
    assert_same(weights, expected)
    for name in ("loss/policy", "loss/entropy_nats", "learner/grad_norm", "learner/tokens", "loss/ratio_mean"):
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("ranks", "job"), on_both([f"trajectory:sgd:{stage}:float32:{layout}" for stage, layout in SPLITS])
)
def test_micro_batches_rows_and_the_order_of_packing_leave_the_step_alone(one, request, ranks, job):
    weights, metrics = request.getfixturevalue(ranks)[job]
    expected, expected_metrics = one["trajectory:sgd:0"]
    assert_same(weights, expected)
    assert metrics["loss/policy"] == pytest.approx(expected_metrics["loss/policy"], rel=1e-4)


@pytest.mark.parametrize(("ranks", "job"), on_both(SHARED))
def test_a_step_on_shared_prefixes_is_the_step_on_rows(request, ranks, job):
    (expected, expected_metrics), (weights, metrics) = request.getfixturevalue(ranks)[job]
    assert metrics.pop("learner/shared_frac") > 0.3
    assert expected_metrics.pop("learner/shared_frac") == 0
    assert metrics["learner/grad_norm"] > 1e-3
    assert_same(weights, expected)
    packing = {"learner/padding_frac", "learner/num_micros"}
    kept = {name: value for name, value in expected_metrics.items() if name not in packing}
    assert {name: metrics[name] for name in kept} == pytest.approx(kept, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("ranks", "job"), on_both(PPO))
def test_with_a_critic_the_steps_are_those_of_a_plain_ppo_loop(request, ranks, job):
    published, head, rows, expected, metadata = request.getfixturevalue(ranks)[job]
    assert head["value_head.weight"].abs().max() > 1e-3, "the head learnt nothing, so nothing was compared"
    found = {**published, **head}
    assert_same({name: found[name] for name in expected}, expected)
    assert [name for name, _, _ in metadata] == list(published), "the value head is published to nobody"
    assert not any("value" in name or name.startswith("policy.") for name in published)
    assert all(np.isfinite(row["value/explained_variance"]) for row in rows)
    assert rows[0]["value/mean"] == 0.0 != rows[1]["value/mean"]


@pytest.mark.parametrize(("ranks", "job"), [("one", "resume:0:critic"), ("two", "resume:3:critic")])
def test_a_critic_is_resumed_to_the_last_bit_and_not_left_out(request, ranks, job):
    first, second, metrics, again, _, refusal = request.getfixturevalue(ranks)[job]
    assert first["value_head.weight"].any()
    assert_same(second, first, atol=0)
    assert again == metrics
    assert "learner.value" in refusal
    assert "value_head" in refusal


def test_a_critic_learns_in_bf16(one):
    head, metrics = one["critic_in_bf16"]
    assert head["value_head.weight"].abs().max() > 1e-2
    assert np.isfinite(metrics["loss/value"])
    assert metrics["learner/num_skipped"] == 0


def test_bf16_follows_fp32_closely(one):
    weights, metrics = one["trajectory:adamw:1:bfloat16"]
    expected, _ = one["trajectory:adamw:0"]
    moved = distance(expected, one["on_policy:adamw"]["initial"])
    assert distance({n: weights[n] for n in expected}, expected) < 0.02
    assert metrics["learner/num_skipped"] == 0
    assert moved > 1e-3


def test_gradient_checkpointing_changes_no_step(one):
    (weights, metrics, runs), (again, metrics_again, runs_again) = one["recomputed"]
    assert runs_again == 2 * runs, "nothing was computed again, so nothing was compared"
    assert_same(again, weights, atol=1e-6)
    assert metrics_again == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize(
    ("ranks", "job"),
    cases(OFTEN, *(("one", f"resume:{how}") for how in ("0", "1::bfloat16", "2", "3")), ("two", "resume:3")),
)
def test_a_resumed_engine_goes_on_as_if_nothing_had_happened(request, ranks, job):
    first, second, metrics, again, resumed_at, refusal = request.getfixturevalue(ranks)[job]
    assert resumed_at == 2
    assert_same(second, first, atol=1e-7)
    assert again == pytest.approx(metrics, rel=1e-5)
    assert "optimizer" in refusal


@pytest.mark.parametrize(("ranks", "job"), [("one", "export:0"), ("two", "export:3")])
def test_an_export_is_a_hugging_face_model_with_the_same_log_probs(request, ranks, job):
    ours, theirs, files, names, metadata = request.getfixturevalue(ranks)[job]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert "lm_head.weight" in names, "a tied head is sent under its own name"
    assert [name for name, _, _ in metadata] == names
    assert all(len(shape) and 0 not in shape for _, _, shape in metadata)


def test_a_generation_configuration_that_cannot_be_written_is_exported_as_it_is(one):
    exported, _ = one["unsavable"]
    assert exported["eos_token_id"] == [2, 5]
    assert (exported["do_sample"], exported["temperature"]) == (False, 0.6)


def test_a_model_that_lacks_weights_is_refused(one):
    _, refused = one["unsavable"]
    assert "lacks 1 of the model's weights, model.layers.1.mlp.up_proj.weight" in refused


@pytest.mark.parametrize(
    ("ranks", "job"), cases(OFTEN, ("one", "not_finite:0"), ("two", "not_finite:0"), ("two", "not_finite:3"))
)
def test_a_gradient_that_is_not_finite_is_skipped_with_a_count(request, ranks, job):
    before, after, later, bad, good = request.getfixturevalue(ranks)[job]
    assert_same(after, before, atol=0)
    assert bad["learner/num_skipped"] == good["learner/num_skipped"] == 1
    assert distance(later, after) > 1e-5
    assert all(w.isfinite().all() for w in later.values())


@pytest.mark.parametrize(("ranks", "job"), cases(OFTEN, ("two", "preferences:0"), ("two", "preferences:3")))
def test_two_ranks_follow_pairs_that_lie_on_both(one, two, ranks, job):
    weights, rows = two[job]
    expected, expected_rows = one["preferences:0"]
    assert_same(weights, expected)
    assert distance(expected, one["on_policy:sgd"]["initial"]) > 1e-3, "nothing was learnt, so nothing was compared"
    assert rows[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6), "at first the policy is the reference"
    for row, other in zip(rows, expected_rows, strict=True):
        for name in ("loss/dpo", "loss/laser", "pairs/chosen_log_ratio_nats", "learner/grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_the_kl_to_the_reference_starts_at_nothing_and_grows(one):
    first, second = (row["loss/kl_nats"] for row in one["reference"])
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-4


def test_an_entropy_bonus_raises_entropy(one):
    entropies = one["entropy_bonus"]
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 0.01
