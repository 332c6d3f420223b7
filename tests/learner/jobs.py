"""What DeepSpeed does in processes of its own: `python -m tests.learner.jobs OUT RANK WORLD PORT MODEL JOB …`.

A job returns tensors and numbers; rank 0 stores them, and a failure's traceback in their place. The tests assert.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cluster.config import LearnerSection, LoraSection, LossSection, ScheduleSection, SequenceLossSection, ValueSection
from cluster.errors import ConfigError
from cluster.types import BatchRecord, Group, GroupReward, Pair, ScoredGroup
from cluster.types.events import RunEvent, kind_of
from learner.advantages.estimators import Undivided
from learner.engine.deepspeed_engine import DeepSpeedEngine, join
from learner.losses.sequence_losses import build_sequence_losses
from learner.pack import pack
from learner.reference import Reference, reference_for
from learner.train import Objective, optimize, train
from learner.types import Engine
from tests.learner.groups import each, ppo_groups, random_groups, random_rewards, record_of, with_common_prompts
from tests.learner.plain import plain_loop, plain_ppo, rewards_of
from tests.learner.runs import run_of

VOCABULARY = 40
LENGTHS = [[(3, 9), (3, 2), (4, 30)], [(2, 5), (9, 1)], [(1, 12), (6, 6), (6, 3), (2, 2)]]


def section_of(optimizer: str, **fields: Any) -> LearnerSection:
    lr = 0.5 if optimizer == "sgd" else 1e-3
    sizes: dict[str, Any] = {"row_tokens": 24, "micro_tokens": 48, "groups_per_step": 2, "max_staleness": 0}
    return LearnerSection.model_validate(
        {"optimizer": optimizer, "schedule": ScheduleSection(lr=lr), **sizes, **fields}
    )


LAYOUTS = {"rows": (24, 48), "single": (1, 1), "wide": (512, 4096)}
"""Tokens of a row and of a micro-batch."""


def head_weights(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """The value head's, gathered."""
    if engine._critic is None:
        return {}
    named = list(engine._critic.value_head.named_parameters())
    with engine._gathered([p for _, p in named]):
        return {f"value_head.{name}": p.detach().float().clone() for name, p in named}


def full_weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.float().clone() for name, tensor in engine.weights()}


def steps_on_random_groups(
    engine: Engine, section: LearnerSection, seeds: range, *, backwards: bool = False, **options
) -> dict[str, float]:
    metrics = {}
    for seed in seeds:
        groups = random_groups(LENGTHS, seed=seed, vocabulary=VOCABULARY)
        rewards = random_rewards(groups, seed)
        if backwards:
            groups, rewards = groups[::-1], rewards[::-1]
        record = record_of(groups, rewards, step=seed)
        batch = pack(groups, record, section, engine.rank, engine.world)
        metrics = optimize(batch, Objective.of(section), engine, **options)
    return metrics


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────


def trajectory(
    model_dir: Path, work: Path, optimizer: str, stage: int, dtype: str = "float32", layout: str = "rows"
) -> Any:
    """Three steps: the weights after them and the last step's metrics. `backwards` packs the groups last first."""
    row_tokens, micro_tokens = LAYOUTS[layout.removeprefix("backwards-")]
    # A gradient of almost nothing has a random sign; with the default eps Adam makes a whole step of it.
    section = section_of(
        optimizer, zero_stage=stage, dtype=dtype, eps=1e-4, row_tokens=row_tokens, micro_tokens=micro_tokens
    )
    engine = DeepSpeedEngine(model_dir, section)
    metrics = steps_on_random_groups(engine, section, range(3), backwards=layout.startswith("backwards-"))
    return full_weights(engine), metrics


def ppo(model_dir: Path, work: Path, stage: int, layout: str = "rows") -> Any:
    """Three steps with a critic, and the same three of a plain loop: weights, value head included, and metrics."""
    value = ValueSection(
        coef=0.5, gamma=0.9, lam=0.8, clip=0.3, lr=0.25, reward_kl_coef=0.05, bootstrap_truncated=stage % 2 == 1
    )
    row_tokens, micro_tokens = LAYOUTS[layout]
    sizes = {"row_tokens": row_tokens, "micro_tokens": micro_tokens}
    section = section_of("sgd", zero_stage=stage, value=value, clip_grad_norm=0.5, **sizes)
    steps = [ppo_groups(seed) for seed in range(3)]
    engine, frozen = DeepSpeedEngine(model_dir, section), Reference(model_dir, section)
    rows = []
    for step, groups in enumerate(steps):
        record = record_of(groups, random_rewards(groups, step), Undivided(), step=step)
        batch = pack(groups, record, section, engine.rank, engine.world)
        rows.append(optimize(batch, Objective.of(section), engine, frozen))
    published = full_weights(engine)
    expected = plain_ppo(model_dir, section, [(groups, random_rewards(groups, i)) for i, groups in enumerate(steps)])
    return published, head_weights(engine), rows, expected, engine.metadata()


def shared(model_dir: Path, work: Path, stage: int, what: str = "") -> Any:
    """Two steps with and without shared prefixes, of a `critic` or `lora` if they are named: weights, metrics.

    `idle`: a group of equal rewards, for which only the first of the two computes a gradient.
    """
    found: list[Any] = []
    terms: dict[str, Any] = {"kl_coef": 0.1, "entropy_coef": 0.01}
    for packing in ("rows", "shared_prefix"):
        section = section_of(
            "sgd", zero_stage=stage, packing=packing, row_tokens=0, micro_tokens=96,
            loss=LossSection(aggregate="sequence", **({} if what == "idle" else terms)),
            value=ValueSection(bootstrap_truncated=True) if what == "critic" else None,
            lora=LoraSection(rank=4, alpha=8) if what == "lora" else None,
        )  # fmt: skip
        engine = DeepSpeedEngine(model_dir, section)
        frozen = reference_for(section, model_dir, engine)
        metrics = {}
        for seed in range(2):
            groups = with_common_prompts(
                [*ppo_groups(seed), *random_groups([[(20, 4)] * 5] * 3, vocabulary=VOCABULARY)]
            )
            for i, group in enumerate(groups):
                groups[i] = replace(group, claim=replace(group.claim, id=f"policy/1/{i}"))
            rewards = random_rewards(groups, seed)
            if what == "idle":
                rewards[3] = np.ones(len(groups[3]))
            record = record_of(groups, rewards, Undivided() if section.value else None, step=seed)
            batch = pack(groups, record, section, engine.rank, engine.world, shares=engine.shares_prefixes)
            if packing == "rows":
                batch = replace(batch, micros=tuple(replace(m, idle=False) for m in batch.micros))
            else:
                assert any(m.idle for m in batch.micros) == (what == "idle")
            metrics = optimize(batch, Objective.of(section), engine, frozen)
        found.append((full_weights(engine) | head_weights(engine), metrics))
    return found


@dataclass
class Shelf:
    """A buffer that hands out the groups of each step and keeps what it is told."""

    groups: list[list[Group]]
    records: list[BatchRecord] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)

    def recorded(self, policy: str, step: int, *, timeout_s: float = 0) -> BatchRecord | None:
        return self.records[step] if step < len(self.records) else None

    def ready(self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float, partial: bool) -> list[Any]:
        return [ScoredGroup(g, {}) for g in self.groups[step]]

    def record(self, epoch: int, record: BatchRecord, filtered: dict[str, str]) -> BatchRecord:
        assert not filtered
        self.records.append(record)
        return record

    def load(self, ids) -> list[Group]:
        return [g for groups in self.groups for g in groups if g.id in ids]

    def drop(self, policy, epoch, ids_with_reason, *, requeue=False) -> None:
        raise AssertionError(f"dropped {ids_with_reason}")

    def release(self, policy: str, epoch: int, version: int, *, by: str | None = None) -> None:
        self.told.append(("release", version))

    def emit(self, event: RunEvent) -> None:
        self.told.append((kind_of(event), event))

    def publish(self, engine: Engine, step: int) -> None:
        self.told.append(("publish", step))


def on_policy(model_dir: Path, work: Path, optimizer: str) -> Any:
    """The whole loop on the groups that a plain loop sampled, and the weights of both."""
    section = section_of(optimizer, steps=4, eps=1e-6)
    sampled, expected = plain_loop(model_dir, section, section.steps)
    shelf = Shelf(sampled)
    engine = DeepSpeedEngine(model_dir, section)

    def mix(group: Group, scores: Any) -> GroupReward:
        return GroupReward(rewards_of(group))

    reached = train(run_of(section, shelf, engine, shelf, each(mix)))
    initial = {n: p.detach() for n, p in AutoModelForCausalLM.from_pretrained(model_dir).named_parameters()}
    rows = [event.metrics for kind, event in shelf.told if kind == "step"]
    engine.barrier()
    return {
        "reached": reached,
        "expected": expected,
        "initial": initial,
        "weights": full_weights(engine),
        "rows": rows,
        "order": [(kind, event if isinstance(event, int) else event.step) for kind, event in shelf.told],
    }


def recomputed(model_dir: Path, work: Path) -> Any:
    """Two steps of the same engine with and without gradient checkpointing: weights, metrics, layers run again."""
    found = []
    for checkpointing in (False, True):
        section = section_of("sgd", gradient_checkpointing=checkpointing)
        engine = DeepSpeedEngine(model_dir, section)
        runs = 0

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        # Not a hook after it: the second run ends with the last tensor that is needed.
        engine._policy.model.layers[0].mlp.register_forward_pre_hook(count)
        metrics = steps_on_random_groups(engine, section, range(2))
        found.append((full_weights(engine), metrics, runs))
    return found


def critic_in_bf16(model_dir: Path, work: Path) -> Any:
    """The value head after three steps, and the last step's metrics."""
    section = section_of("adamw", zero_stage=1, dtype="bfloat16", value=ValueSection(lr=1e-2))
    engine = DeepSpeedEngine(model_dir, section)
    metrics = steps_on_random_groups(engine, section, range(3))
    return head_weights(engine), metrics


def resume(model_dir: Path, work: Path, stage: int, critic: str = "", dtype: str = "float32") -> Any:
    """Two steps, save, two steps; and from the save the last two again."""
    section = section_of("adamw", zero_stage=stage, dtype=dtype, value=ValueSection(lr=3e-3) if critic else None)
    section = section.model_copy(update={"schedule": ScheduleSection(lr=1e-3, warmup_steps=6)})
    directory = work / f"saved-{stage}{critic}-{dtype}"
    first = DeepSpeedEngine(model_dir, section)
    steps_on_random_groups(first, section, range(2))
    first.save(directory)
    metrics = steps_on_random_groups(first, section, range(2, 4))
    second = DeepSpeedEngine(model_dir, section)
    second.load(directory)
    resumed_at = second.step
    again = steps_on_random_groups(second, section, range(2, 4))
    other = {"value": None} if critic else {"optimizer": "sgd"}
    third = DeepSpeedEngine(model_dir, section.model_copy(update=other))
    try:
        third.load(directory)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    of_both = (full_weights(e) | head_weights(e) for e in (first, second))
    return *of_both, metrics, again, resumed_at, refusal


def export(model_dir: Path, work: Path, stage: int) -> Any:
    """Logits of the exported model, and what the engine itself says of the same tokens."""
    section = section_of("sgd", zero_stage=stage)
    engine = DeepSpeedEngine(model_dir, section)
    steps_on_random_groups(engine, section, range(2))
    directory = work / f"exported-{stage}"
    engine.export(directory)
    engine.barrier()
    groups = random_groups([[(1, 20)]], vocabulary=VOCABULARY)
    micro = pack(groups, record_of(groups, random_rewards(groups)), section).micros[0]
    with torch.no_grad():
        ours = engine.logprobs(micro)[0][0, 1:]
        tokens = torch.from_numpy(micro.tokens)
        logits = AutoModelForCausalLM.from_pretrained(directory)(input_ids=tokens).logits[0, :-1]
    theirs = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    return ours, theirs, sorted(p.name for p in directory.iterdir()), list(full_weights(engine)), engine.metadata()


SAMPLING = {"bos_token_id": 1, "eos_token_id": [2, 5], "do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 1}
"""A generation configuration that transformers reads and refuses to write."""


def unsavable(model_dir: Path, work: Path) -> Any:
    """What becomes of models whose files transformers reads and could not write, or that lack weights."""
    odd, lacking = (Path(shutil.copytree(model_dir, work / name)) for name in ("odd", "lacking"))
    (odd / "generation_config.json").write_text(json.dumps(SAMPLING))
    engine = DeepSpeedEngine(odd, section_of("sgd"))
    engine.try_export()
    engine.export(work / "of-odd")
    AutoModelForCausalLM.from_pretrained(work / "of-odd")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    try:
        DeepSpeedEngine(lacking, section_of("sgd"))
        refused = ""
    except ConfigError as error:
        refused = str(error)
    return json.loads((work / "of-odd" / "generation_config.json").read_text()), refused


def not_finite(model_dir: Path, work: Path, stage: int) -> Any:
    """A step whose loss is NaN on one rank, between two good ones."""
    section = section_of("adamw", zero_stage=stage)
    engine = DeepSpeedEngine(model_dir, section)
    steps_on_random_groups(engine, section, range(1))
    before = full_weights(engine)
    groups = random_groups(LENGTHS, vocabulary=VOCABULARY)
    batch = pack(groups, record_of(groups, random_rewards(groups)), section, engine.rank, engine.world)
    if engine.rank == 0:
        bad = np.where(batch.micros[0].loss_mask, np.float32("nan"), np.float32(0))
        batch = replace(batch, micros=(replace(batch.micros[0], advantages=bad), *batch.micros[1:]))
    bad_metrics = optimize(batch, Objective.of(section), engine)
    after = full_weights(engine)
    good_metrics = steps_on_random_groups(engine, section, range(1, 2))
    return before, after, full_weights(engine), bad_metrics, good_metrics


def reference(model_dir: Path, work: Path) -> Any:
    """The KL to the initial weights: nothing before the first step, something after."""
    section = section_of("sgd", loss=LossSection(kl_coef=0.1, entropy_coef=0.01))
    engine, frozen = DeepSpeedEngine(model_dir, section), Reference(model_dir, section)
    return [steps_on_random_groups(engine, section, range(s, s + 1), reference=frozen) for s in range(2)]


def entropy_bonus(model_dir: Path, work: Path) -> Any:
    """Entropy after some steps of nothing but an entropy bonus."""
    section = section_of("adamw", loss=LossSection(entropy_coef=100.0), clip_grad_norm=0.0)
    engine = DeepSpeedEngine(model_dir, section)
    return [steps_on_random_groups(engine, section, range(0, 1))["loss/entropy_nats"] for _ in range(5)]


PAIRS = ((Pair(0, 2), Pair(2, 1, label=0.8)), (Pair(1, 0),), (Pair(3, 0),))


def preferences(model_dir: Path, work: Path, stage: int) -> Any:
    """Two steps of a policy loss, a loss on pairs and one on a token behind the end; weights and metrics."""
    laser = {"token": 5, "mix_after_steps": 0, "min_std": 1e-4, "reference_logprob": 0}
    terms = (SequenceLossSection(use="dpo"), SequenceLossSection(use="laser", options=laser))
    section = section_of("sgd", zero_stage=stage, sequence_losses=terms)
    engine, built = DeepSpeedEngine(model_dir, section), build_sequence_losses(section)
    frozen, rows = Reference(model_dir, section), []
    for seed in range(2):
        groups = random_groups(LENGTHS, seed=seed, vocabulary=VOCABULARY)
        record = replace(record_of(groups, random_rewards(groups, seed), step=seed), pairs=PAIRS)
        batch = pack(groups, record, section, engine.rank, engine.world, append=built.appended_token)
        rows.append(optimize(batch, Objective.of(section), engine, frozen))
    return full_weights(engine), rows


JOBS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        trajectory,
        ppo,
        critic_in_bf16,
        on_policy,
        recomputed,
        resume,
        export,
        unsavable,
        not_finite,
        preferences,
        reference,
        entropy_bonus,
        shared,
    )
}


def main() -> None:
    out, rank, world, port, model_dir, *jobs = sys.argv[1:]
    torch.set_num_threads(1)
    join(int(rank), int(world), ("127.0.0.1", int(port)), timeout_s=60)
    results = {}
    for job in jobs:
        name, *arguments = job.split(":")
        values = [int(a) if a.isdigit() else a for a in arguments]
        try:
            results[job] = JOBS[name](Path(model_dir), Path(out).parent, *values)
        except Exception:
            # To whoever asks for this job's result; the other jobs are other tests'.
            results[job] = traceback.format_exc()
            if int(world) > 1:
                break
    if int(rank) == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main()
