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
"""(groups of the step, their scores) → the aggregated reward of each group."""

Select = Callable[[Sequence[Group], Sequence[dict[str, Scores]], list[GroupReward]], list[GroupReward]]
"""(groups, scores, rewards) → rewards and pairs that the step trains on; a NaN reward leaves its rollout out."""


class Stored(Protocol):
    """A ready group and its scores, as the buffer returns it."""

    @property
    def group(self) -> Group: ...
    @property
    def scores(self) -> dict[str, Scores]: ...
    @property
    def outdated(self) -> bool: ...


class AssemblyBuffer(Protocol):
    """The part of `cluster.buffer.Buffer` that assembling a batch uses."""

    def recorded(self, policy: str, step: int, *, timeout_s: float = 0) -> BatchRecord | None: ...
    def load(self, ids: Sequence[str]) -> list[Group]: ...
    def ready(self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float) -> Sequence[Stored]: ...
    def drop(self, policy: str, epoch: int, ids_with_reason: dict[str, str], *, requeue: bool = False) -> object: ...
    def record(self, epoch: int, record: BatchRecord, filtered: dict[str, str]) -> BatchRecord: ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A group that the step dropped, and why."""

    group: Group
    scores: dict[str, Scores]
    rewards: np.ndarray
    """[G] float64, NaN where unknown."""
    reason: str


@dataclass(slots=True)
class AssembledBatch:
    """A recorded batch with its groups; `wait_s` is how long the learner waited for rollouts and scores."""

    record: BatchRecord
    groups: list[Group]
    wait_s: float = 0.0
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """Scores by group id, where this call decided; a repeated step reads rewards from the record alone."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Groups that the step considered and dropped, where this call decided."""
    observed: Any = None
    """What a controller noted of all groups that the step considered (`Controller.observe`)."""


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """A model in training, as the training loop uses it. Every method is collective; attributes are not."""

    rank: int
    world: int
    step: int
    """Training iterations behind the weights, each with one or more optimizer steps, skipped ones included."""
    num_skipped: int
    """Updates left out because their gradient was not finite."""

    def logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return [B, L] nats at the tokens' temperatures: log-prob of each trained token, and entropy; 0 elsewhere."""
        ...

    def logprobs_and_values(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `logprobs` returns and [B, L + 1] values (`ValueHead.values`); needs `learner.value`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the loss; the parts of all ranks are *summed*."""
        ...

    def optimizer_step(self, *, final: bool = True) -> dict[str, float]:
        """Update the weights; the `final` update of an assembled batch ends the step."""
        ...

    def skip_step(self) -> None: ...
    def weights(self) -> Iterator[tuple[str, Tensor]]: ...
    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]: ...
    def agree(self, flag: bool) -> bool: ...
    def total(self, values: Mapping[str, float]) -> dict[str, float]: ...
    def barrier(self) -> None: ...
    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path) -> None: ...
    def export(self, directory: Path) -> None: ...


class LoopBuffer(AssemblyBuffer, Protocol):
    """The part of `cluster.buffer.Buffer` that the training loop uses."""

    def release(self, policy: str, epoch: int, version: int, *, by: str | None = None) -> object: ...
    def emit(self, kind: str, fields: dict[str, Any]) -> object: ...
    def stored(self, ids: Sequence[str]) -> Sequence[Stored]: ...


class Publisher(Protocol):
    def publish(self, engine: Engine, step: int) -> None:
        """Hand over the weights; on return engines have them, or know where to fetch them. Collective."""
        ...


class ReferenceModel(Protocol):
    """A frozen model that only gives log-probs."""

    def logprobs(self, micro: MicroBatch) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Considered:
    """All groups that a step looked at before it decided, those that it drops included, with their scores."""

    groups: Sequence[Group]
    scores: Sequence[dict[str, Scores]]
    selected_under: Callable[[Mapping[str, Any]], Sequence[GroupReward]]
    """(dotted key of the recipe → value) → rewards of these groups under these settings. The step would train on
    rollouts whose reward is finite, in groups whose `drop` is None."""
