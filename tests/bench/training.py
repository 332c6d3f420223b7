"""The learner's step, through DeepSpeed, against a bare torch loop on the same packed tokens.

Both sides hold the same model in fp32, the same AdamW and the same clipped surrogate; both compute logits where a token
is trained only. At the end their weights must agree, or they did not do the same work. Rates are by processor seconds:
both sides do nothing but compute, and a machine in use stretches their wall time at random.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.config import LearnerSection, ModelSection
from cluster.types import Batch
from tests.bench.figures import Figure, alternate
from tests.learner.groups import random_groups, random_rewards, record_of

if TYPE_CHECKING:
    from learner.engine.deepspeed_engine import DeepSpeedEngine

LR, EPS = 1e-4, 1e-4
"""With the default eps a gradient of almost nothing, whose sign is rounding, makes a whole step."""
SAME_FRAC = 0.05
"""How far apart the two sides may end, as a share of how far they have come."""


@dataclass(frozen=True)
class Load:
    name: str
    model: str
    groups: int
    group_size: int
    prompt: int
    response: int
    at_least: float | None


LOADS = (
    Load("training_smollm2", "smollm2", groups=1, group_size=8, prompt=16, response=48, at_least=0.97),
    Load("training_small", "tiny:addition", groups=16, group_size=16, prompt=6, response=4, at_least=0.97),
)


def measure() -> list[Figure]:
    with joined():
        return [_measure(load) for load in LOADS]


@contextmanager
def joined() -> Iterator[None]:
    """A process group of this process alone."""
    from cluster.process.cleanup import settle
    from learner.engine.deepspeed_engine import join

    settle()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join(0, 1, ("127.0.0.1", port), timeout_s=60)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        for left in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_127.0.0.1_{port}_0"):
            left.unlink()  # DeepSpeed leaves it there


def engine_of(load: Load, section: LearnerSection) -> tuple[DeepSpeedEngine, str]:
    """The learner's engine of a load, and the directory of its model; on one thread, for threads that wait spin."""
    from actors.models import prepare
    from learner.engine.deepspeed_engine import DeepSpeedEngine

    model_dir = str(prepare(ModelSection(path=load.model), seed=0))
    return DeepSpeedEngine(model_dir, section.model_copy(update={"threads": 1})), model_dir


def _measure(load: Load) -> Figure:
    from learner.pack import pack
    from learner.train import Objective, optimize

    section = LearnerSection.model_validate({"schedule": {"lr": LR}, "eps": EPS})
    engine, model_dir = engine_of(load, section)
    lengths = [[(load.prompt, load.response)] * load.group_size] * load.groups
    groups = random_groups(lengths, vocabulary=engine.vocab_size)
    batch = pack(groups, record_of(groups, random_rewards(groups)), section)
    num_tokens = sum(len(r.tokens) for g in groups for r in g.rollouts)
    bare, objective = Bare(model_dir, section), Objective.of(section)
    before = bare.first_layer()

    def ours() -> float:
        begun = time.process_time()
        optimize(batch, objective, engine)
        return num_tokens / (time.process_time() - begun)

    def other() -> float:
        begun = time.process_time()
        bare.step(batch)
        return num_tokens / (time.process_time() - begun)

    rates = alternate(ours, other)
    after, trained = bare.first_layer(), dict(engine.weights())
    moved = max(float((after[n] - before[n]).abs().max()) for n in after)
    apart = max(float((after[n] - trained[n]).abs().max()) for n in after)
    assert apart < SAME_FRAC * moved, f"{load.name}: not the same steps; weights moved by {moved}, ended {apart} apart"
    details = {"model": load.model, "dtype": "float32", "tokens_per_step": num_tokens, "apart_frac": apart / moved}
    return Figure(load.name, "tokens/CPU s", *rates, load.at_least, details)


class Bare:
    """Forward, surrogate, backward, clip, step; nothing measured, nothing guarded."""

    def __init__(self, model_dir: str, section: LearnerSection) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
        )

    def first_layer(self) -> dict[str, torch.Tensor]:
        """Every gradient comes through all others to get here."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if ".layers.0." in n}

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        for micro in batch.micros:
            tokens, positions = torch.as_tensor(micro.tokens), torch.as_tensor(micro.positions)
            trained = torch.as_tensor(micro.loss_mask).flatten().nonzero()[:, 0]
            behaviour = torch.as_tensor(micro.logprobs).flatten()[trained]
            advantages = torch.as_tensor(micro.advantages).flatten()[trained]
            hidden = self.model.model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1)[trained - 1])
            logprobs = -torch.nn.functional.cross_entropy(logits, tokens.flatten()[trained], reduction="none")
            ratio = (logprobs - behaviour).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            (-gain.sum() / batch.num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
