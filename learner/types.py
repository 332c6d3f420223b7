"""Types that several parts of the learner share: an assembled batch, and protocols of engine, publisher and buffer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cluster.types import BatchRecord, Group, GroupReward, MicroBatch, Scores

Mix = Callable[[Sequence[Group], Sequence[dict[str, Scores]]], list[GroupReward]]
"""The step's groups and their evidence → what each is worth."""

Select = Callable[[Sequence[Group], Sequence[dict[str, Scores]], list[GroupReward]], list[GroupReward]]
"""The same → which of their rollouts and pairs are trained on; a reward of NaN leaves its rollout out."""


class Stored(Protocol):
    """A ready group and its evidence, as the buffer hands it out."""

    @property
    def group(self) -> Group: ...
    @property
    def scores(self) -> dict[str, Scores]: ...
    @property
    def outdated(self) -> bool: ...


class AssemblyBuffer(Protocol):
    """The part of `cluster.buffer.Buffer` that a cut uses."""

    def recorded(self, policy: str, step: int, *, timeout_s: float = 0) -> BatchRecord | None: ...
    def load(self, ids: Sequence[str]) -> list[Group]: ...
    def ready(self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float) -> Sequence[Stored]: ...
    def drop(self, policy: str, epoch: int, ids_with_reason: dict[str, str], *, requeue: bool = False) -> object: ...
    def record(self, epoch: int, record: BatchRecord, filtered: dict[str, str]) -> BatchRecord: ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A group that nothing could be learnt from, and why."""

    group: Group
    scores: dict[str, Scores]
    rewards: np.ndarray
    """[G] float64, NaN where unknown."""
    reason: str


@dataclass(slots=True)
class AssembledBatch:
    """A recorded cut and its groups; `wait_s` is how long rollouts and scores were waited for."""

    record: BatchRecord
    groups: list[Group]
    wait_s: float = 0.0
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """Evidence by group id, where this call decided; a repeated cut reads rewards from the record alone."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Groups that the step looked at and dropped, where this call decided."""
    observed: Any = None
    """What the controller that is asked noted of all groups that the step looked at (`Controller.observe`)."""


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """What the loop needs of a model in training. Collective but for the attributes."""

    rank: int
    world: int
    step: int
    """Training iterations behind the weights, each with one or more optimizer steps, skipped ones included."""
    num_skipped: int
    """Updates left out because their gradient was not finite."""

    def logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """[B, L] nats at the micro's temperatures: log-prob of each trained token, entropy there; 0 elsewhere."""
        ...

    def logprobs_and_values(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and [B, L + 1] values (`ValueHead.values`); of an engine with `learner.value` only."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the loss; the parts of all ranks are *summed*."""
        ...

    def optimizer_step(self, *, final: bool = True) -> dict[str, float]:
        """Update the weights; the `final` update of an assembled batch ends the step."""
        ...

    def skip_step(self) -> None: ...
    def weights(self) -> Iterator[tuple[str, Tensor]]: ...
    def agree(self, flag: bool) -> bool: ...
    def total(self, values: Mapping[str, float]) -> dict[str, float]: ...
    def barrier(self) -> None: ...
    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path) -> None: ...
    def export(self, directory: Path) -> None: ...


class LoopBuffer(AssemblyBuffer, Protocol):
    def release(self, policy: str, epoch: int, version: int, *, by: str | None = None) -> object: ...
    def emit(self, kind: str, fields: dict[str, Any]) -> object: ...
    def stored(self, ids: Sequence[str]) -> Sequence[Stored]: ...


class Publisher(Protocol):
    def publish(self, engine: Engine, step: int) -> None:
        """Hand over the weights; on return engines have them, or know where to fetch them. Collective."""
        ...


class ReferenceModel(Protocol):
    def logprobs(self, micro: MicroBatch) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the roof wants to know or say. All but `stop` are called on every rank."""

    stop: Callable[[], bool] = lambda: False
    """Asked while waiting for groups: whether to leave before the next step."""
    stage: Callable[[str], None] = lambda what: None
    """What the loop does from now on, in words."""
    before_step: Callable[[int, AssembledBatch], None] = lambda step, cut: None
    """Before the optimizer step number `step` (from 0)."""
    after_step: Callable[[int, AssembledBatch, dict[str, float]], None] = lambda step, cut, metrics: None
    """After it, with its metrics, before its weights are published."""
    logprobs: Callable[[MicroBatch, torch.Tensor], None] = lambda micro, logprobs: None
    """Each micro-batch, with its log-probs [B, L] under the weights at the start of the step."""
    at_step: Callable[[int, AssembledBatch], None] = lambda done, cut: None
    """After `done` steps, with what the last one trained on."""
    checkpoint: Callable[[int], None] = lambda done: None
    """After `done` steps, published and released, before the next cut."""


NO_HOOKS = Hooks()


@dataclass(frozen=True, slots=True)
class Considered:
    """All groups that a step looked at before it decided, those that it drops included, with their evidence."""

    groups: Sequence[Group]
    scores: Sequence[dict[str, Scores]]
    selected_under: Callable[[Mapping[str, Any]], Sequence[GroupReward]]
    """What mixer and selectors make of these groups if the recipe's dotted keys had these values: a rollout is trained
    on where its reward is finite and its group's `drop` is None."""
