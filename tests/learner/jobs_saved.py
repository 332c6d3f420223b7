"""Jobs, as in `tests.learner.jobs`: state that others continue from, and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.config import LoraSection, LossSection, ScheduleSection
from cluster.errors import ConfigError
from learner.engine.deepspeed_engine import DeepSpeedEngine
from learner.pack import pack
from learner.publish.publishers import PullPublisher
from learner.reference import Reference, reference_for
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.learner.jobs import JOBS, VOCABULARY, full_weights, main, section_of, steps_on_random_groups

SLOW_START = {name: ScheduleSection(lr=lr, warmup_steps=6) for name, lr in (("sgd", 0.5), ("adamw", 1e-3))}


def leave(model_dir: Path, work: Path, optimizer: str, stage: int) -> Any:
    """Two steps, save for others, two steps more: where they left off."""
    section = section_of(optimizer, zero_stage=stage, eps=1e-6)
    section = section.model_copy(update={"schedule": SLOW_START[optimizer]})
    engine = DeepSpeedEngine(model_dir, section)
    steps_on_random_groups(engine, section, range(2))
    engine.save(work.parent / f"left-{engine.world}-{optimizer}-{stage}")
    engine.barrier()
    metrics = steps_on_random_groups(engine, section, range(2, 4))
    return full_weights(engine), metrics, engine.step


def arrive(model_dir: Path, work: Path, optimizer: str, stage: int, left_world: int, left_stage: int) -> Any:
    """The two steps more, under this stage and these ranks, from what others have left."""
    section = section_of(optimizer, zero_stage=stage, eps=1e-6)
    section = section.model_copy(update={"schedule": SLOW_START[optimizer]})
    engine = DeepSpeedEngine(model_dir, section)
    engine.load(work.parent / f"left-{left_world}-{optimizer}-{left_stage}")
    resumed_at = engine.step
    metrics = steps_on_random_groups(engine, section, range(2, 4))
    return full_weights(engine), metrics, engine.step, resumed_at


def lora(model_dir: Path, work: Path, optimizer: str, stage: int) -> Any:
    """Three steps of adapters with a KL penalty, beside the same with a second model as the reference."""
    section = section_of(
        optimizer, zero_stage=stage, lora=LoraSection(rank=4, alpha=8), loss=LossSection(kl_coef=0.1), eps=1e-4
    )
    engine, other = DeepSpeedEngine(model_dir, section), DeepSpeedEngine(model_dir, section)
    initial, frozen = full_weights(engine), frozen_weights(engine)
    own, second = reference_for(section, model_dir, engine), Reference(model_dir, section)
    rows = [steps_on_random_groups(engine, section, range(s, s + 1), reference=own) for s in range(3)]
    steps_on_random_groups(other, section, range(3), reference=second)
    return {
        "initial": initial,
        "frozen": (frozen, frozen_weights(engine)),
        "weights": full_weights(engine),
        "with_second_model": full_weights(other),
        "rows": rows,
        "metadata": engine.metadata(),
    }


def frozen_weights(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in engine._engine.module.named_parameters():
        if not parameter.requires_grad:
            with engine._gathered([parameter]):
                found[name] = parameter.detach().clone()
    return found


def lora_saved(model_dir: Path, work: Path, stage: int) -> Any:
    """What adapters are published, exported and resumed as; with dropout, which a resumed step repeats."""
    section = section_of("adamw", zero_stage=stage, lora=LoraSection(rank=4, alpha=8, dropout=0.2))
    engine = DeepSpeedEngine(model_dir, section)
    steps_on_random_groups(engine, section, range(2))
    saved, exported = work / f"lora-saved-{stage}", work / f"lora-exported-{stage}"
    engine.save(saved)
    exported.mkdir(exist_ok=True)
    engine.export(exported)
    published: list[Any] = []
    announcer: Any = type("Announcer", (), {"announce": lambda self, publication: published.append(publication)})()
    PullPublisher(announcer, "policy", 1, run_id=f"lora-{stage}", root=work).publish(engine, 2)
    engine.barrier()
    groups = random_groups([[(1, 20)]], vocabulary=VOCABULARY)
    micro = pack(groups, record_of(groups, random_rewards(groups)), section).micros[0]
    with torch.no_grad():
        probed = [engine.logprobs(micro)[0][0, 1:] for _ in range(2)]
    at_save = full_weights(engine)
    metrics = steps_on_random_groups(engine, section, range(2, 4))
    second = DeepSpeedEngine(model_dir, section)
    second.load(saved)
    again = steps_on_random_groups(second, section, range(2, 4))
    wider = section.model_copy(update={"lora": LoraSection(rank=5, alpha=8)})
    try:
        DeepSpeedEngine(model_dir, wider).load(saved)
        refusal = ""
    except ConfigError as error:
        refusal = str(error)
    return {
        "tokens": torch.from_numpy(micro.tokens),
        "probed": probed,
        "at_save": at_save,
        "weights": (full_weights(engine), full_weights(second)),
        "metrics": (metrics, again),
        "exported": str(exported),
        "saved": str(saved),
        "published": [p.file.path for p in published],
        "refusal": refusal,
    }


def lora_recomputed(model_dir: Path, work: Path) -> Any:
    """Dropout, gradient checkpointing and a reference pass between forward and backward: with and without."""
    found = []
    for checkpointing in (False, True):
        section = section_of(
            "sgd",
            lora=LoraSection(rank=4, alpha=8, dropout=0.2),
            loss=LossSection(kl_coef=0.1),
            gradient_checkpointing=checkpointing,
        )
        engine = DeepSpeedEngine(model_dir, section)
        own = reference_for(section, model_dir, engine)
        steps_on_random_groups(engine, section, range(2), reference=own)
        found.append(full_weights(engine))
    return found


def lora_misfit(model_dir: Path, work: Path, targets: str) -> dict[str, str]:
    """What is said of target modules that cannot have adapters."""
    try:
        DeepSpeedEngine(model_dir, section_of("sgd", lora=LoraSection(target_modules=(targets,))))
    except ConfigError as error:
        return {"said": str(error)}
    raise AssertionError("accepted")


JOBS |= {f.__name__: f for f in (leave, arrive, lora, lora_saved, lora_recomputed, lora_misfit)}

if __name__ == "__main__":
    main()
