"""What plug-ins remember from step to step, on rank 0: part of every checkpoint, and the same when steps are repeated.

    before a cut    advantages, replays and settings are decided with what is remembered, and are part of its record
    after it        every memory takes the cut in: memory' = after(memory, cut), which is pure
    a checkpoint    has the memories; a step repeated from its record is taken in again, with the same result

Memories are plain values that MessagePack has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from cluster.errors import ConfigError, calling
from cluster.types import BatchRecord, Group
from learner.step_plugin import StepPlugin
from learner.types import AssembledBatch, Considered, Stored

FILE = "memory.msgpack"
ADVANTAGE, REHEARSAL = "advantage", "rehearsal"


@runtime_checkable
class StatefulPlugin(Protocol):
    """A plug-in with a memory."""

    def begin(self) -> Any:
        """The memory before the first step."""
        ...

    def after(self, memory: Any, cut: AssembledBatch) -> Any:
        """The memory after a step. Pure: the same cut gives the same."""
        ...

    def told(self, memory: Any) -> dict[str, float]:
        """Metrics of what is remembered before a step."""
        ...


class PluginState:
    """The memories of a learner by name; plug-ins without one have None."""

    def __init__(self, plugins: Mapping[str, Any]) -> None:
        self._plugins = plugins
        self._remembering = {name: p for name, p in plugins.items() if isinstance(p, StatefulPlugin)}
        self._observing = {name: p for name, p in plugins.items() if callable(getattr(p, "observe", None))}
        self._memories = {name: _called(name, p.begin) for name, p in self._remembering.items()}

    @property
    def remembering(self) -> list[str]:
        """Names of those that have a memory."""
        return list(self._remembering)

    def of(self, name: str) -> Any:
        return self._memories.get(name)

    def completed(
        self, record: BatchRecord, groups: Sequence[Group], considered: Considered | None = None
    ) -> BatchRecord:
        """A decided cut with what the memories add to it: replayed rollouts, settings, metrics, observations."""
        told: dict[str, float] = {}
        for name, p in self._remembering.items():
            told |= _called(name, p.told, self.of(name))
        noted = (
            {name: _called(name, p.observe, considered) for name, p in self._observing.items()} if considered else {}
        )
        observed = {name: value for name, value in noted.items() if value is not None}
        record = replace(record, metrics=record.metrics | told, settings=self.settings(), observed=observed)
        if (rehearsal := self._plugins.get(REHEARSAL)) is None:
            return record
        replayed = rehearsal.chosen(self.of(REHEARSAL), groups, record)
        count = float(sum(len(r.group) for r in replayed))
        return replace(record, replayed=replayed, metrics=record.metrics | {"replay/num_rollouts": count})

    def settings(self) -> dict[str, Any]:
        """What controllers make of the recipe now: dotted key → value."""
        found: dict[str, Any] = {}
        for name, plugin in self._plugins.items():
            if callable(patch := getattr(plugin, "patch", None)):
                settings: Any = _called(name, patch, self.of(name))
                found |= settings
        return found

    @property
    def reads_scores(self) -> bool:
        """Whether `after` wants the evidence of a cut, also of a repeated one."""
        return any(getattr(plugin, "reads_scores", False) for plugin in self._plugins.values())

    def after(self, cut: AssembledBatch) -> None:
        """Take a step in."""
        observed = cut.record.observed
        self._memories = {
            name: _called(name, p.after, self._memories[name], replace(cut, observed=observed.get(name)))
            for name, p in self._remembering.items()
        }

    def save(self, directory: Path) -> None:
        if self._remembering:
            (directory / FILE).write_bytes(msgspec.msgpack.encode(self._memories))

    def load(self, directory: Path) -> None:
        """Go on from a checkpoint. Raises ConfigError where it has no memory of a plug-in that needs one."""
        if not self._remembering:
            return
        path = directory / FILE
        found = msgspec.msgpack.decode(path.read_bytes()) if path.exists() else {}
        missing = [name for name in self._remembering if name not in found]
        if missing:
            raise ConfigError(
                f"the checkpoint '{directory.parent}' has no memory of {', '.join(missing)}: it was written without. "
                "Resume with the recipe it was written with, or start anew."
            )
        self._memories = {name: found[name] for name in self._remembering}


class StateUpdates(StepPlugin):
    """Let plug-ins of a recipe remember each step, and keep what they remember in checkpoints. Rank 0 alone does."""

    def __init__(self, state: PluginState, rank: int, stored: Callable[[Sequence[str]], Sequence[Stored]]) -> None:
        """`stored` returns groups of the buffer by id, for the scores of a repeated step."""
        self._state, self._rank, self._stored = state, rank, stored

    def before_record(self, record: BatchRecord, groups: Sequence[Group], considered: Considered) -> BatchRecord:
        return self._state.completed(record, groups, considered)

    def after_step(self, step: int, batch: AssembledBatch, metrics: dict[str, float]) -> None:
        if self._rank != 0:
            return
        if self._state.reads_scores and not batch.scores:  # a repeated step: its scores are still stored
            batch.scores.update({s.group.id: s.scores for s in self._stored(batch.record.groups)})
        self._state.after(batch)

    def save(self, directory: Path) -> None:
        self._state.save(directory)

    def load(self, directory: Path) -> None:
        self._state.load(directory)


def _called(name: str, method: Callable[..., Any], *args: Any) -> Any:
    """What the plug-in of that name answers. Raises PluginError for whatever it raises."""
    with calling(f"plug-in '{name}' ({method.__name__})"):
        return method(*args)
