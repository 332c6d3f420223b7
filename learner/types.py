"""Protocols that several parts of the learner share: engine, reference model, publisher and buffer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cluster.types import BatchRecord, Group, GroupReward, MicroBatch, ScoredGroup, Scores
from cluster.types.events import RunEvent

Mix = Callable[[Sequence[Group], Sequence[dict[str, Scores]]], list[GroupReward]]
"""(groups of the step, their scores) → the aggregated reward of each group."""

Select = Callable[[Sequence[Group], Sequence[dict[str, Scores]], list[GroupReward]], list[GroupReward]]
"""(groups, scores, rewards) → rewards and pairs that the step trains on; a NaN reward leaves its rollout out."""


class AssemblyBuffer(Protocol):
    """The part of `cluster.buffer.Buffer` that assembling a batch uses."""

    def recorded(self, policy: str, step: int, *, timeout_s: float = 0) -> BatchRecord | None: ...
    def load(self, ids: Sequence[str]) -> list[Group]: ...
    def ready(
        self, policy: str, epoch: int, step: int, *, limit: int, timeout_s: float, partial: bool
    ) -> Sequence[ScoredGroup] | None: ...
    def drop(self, policy: str, epoch: int, ids_with_reason: dict[str, str], *, requeue: bool = False) -> object: ...
    def record(self, epoch: int, record: BatchRecord, filtered: dict[str, str]) -> BatchRecord: ...


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
    def emit(self, event: RunEvent) -> object: ...
    def stored(self, ids: Sequence[str]) -> Sequence[ScoredGroup]: ...


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
