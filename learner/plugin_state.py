"""What plug-ins remember from step to step, on rank 0: part of every checkpoint, and equal when steps are repeated.

    before a batch is recorded   plug-ins decide advantages, replays and settings with what they remember
    after its step               every plug-in takes the batch in: state' = update(state, batch), which is pure
    a checkpoint                 has the states; a step repeated from its record is taken in again, with an equal result

`cluster.plugins.StatefulPlugin` is the base class of plug-ins that remember.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from cluster.errors import ConfigError, calling
from cluster.plugins import StatefulPlugin
from cluster.types import AssembledBatch, BatchRecord, Group, ScoredGroup
from learner.step_plugin import StepPlugin
from learner.types import Considered

FILE = "memory.msgpack"
ADVANTAGE, EXPERIENCE_REPLAY = "advantage", "experience_replay"


class PluginState:
    """What a learner's plug-ins remember, by name; those that are no `StatefulPlugin` have None."""

    def __init__(self, plugins: Mapping[str, Any]) -> None:
        """Raises ConfigError for a plug-in that remembers by methods of an earlier version."""
        self._plugins = plugins
        for name, plugin in plugins.items():
            _refuse_earlier_methods(name, plugin)
        self._remembering = {name: p for name, p in plugins.items() if isinstance(p, StatefulPlugin)}
        self._observing = {name: p for name, p in plugins.items() if callable(getattr(p, "observe", None))}
        self._memories = {name: _called(name, p.init_state) for name, p in self._remembering.items()}

    @property
    def remembering(self) -> list[str]:
        """Names of the plug-ins that remember."""
        return list(self._remembering)

    def of(self, name: str) -> Any:
        return self._memories.get(name)

    def completed(
        self, record: BatchRecord, groups: Sequence[Group], considered: Considered | None = None
    ) -> BatchRecord:
        """Return a decided batch with what plug-ins add to it: replayed rollouts, settings, metrics, observations."""
        told: dict[str, float] = {}
        for name, p in self._remembering.items():
            told |= _called(name, p.metrics, self.of(name))
        noted = (
            {name: _called(name, p.observe, considered) for name, p in self._observing.items()} if considered else {}
        )
        observed = {name: value for name, value in noted.items() if value is not None}
        record = replace(record, metrics=record.metrics | told, settings=self.settings(), observed=observed)
        if (replay := self._plugins.get(EXPERIENCE_REPLAY)) is None:
            return record
        replayed = replay.chosen(self.of(EXPERIENCE_REPLAY), groups, record)
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
        """Whether a plug-in reads the scores of a batch, also of a repeated one."""
        return any(getattr(plugin, "reads_scores", False) for plugin in self._plugins.values())

    def update(self, batch: AssembledBatch) -> None:
        """Let every plug-in remember a step."""
        observed = batch.record.observed
        self._memories = {
            name: _called(name, p.update, self._memories[name], replace(batch, observed=observed.get(name)))
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
        if "rehearsal" in found:  # how version 0.1 called it
            found[EXPERIENCE_REPLAY] = found.pop("rehearsal")
        missing = [name for name in self._remembering if name not in found]
        if missing:
            raise ConfigError(
                f"the checkpoint '{directory.parent}' has no memory of {', '.join(missing)}: it was written without. "
                "Resume with the recipe it was written with, or start anew."
            )
        self._memories = {name: found[name] for name in self._remembering}


class StateUpdates(StepPlugin):
    """Let plug-ins of a recipe remember each step, and keep what they remember in checkpoints. Rank 0 alone does."""

    def __init__(self, state: PluginState, rank: int, stored: Callable[[Sequence[str]], Sequence[ScoredGroup]]) -> None:
        """`stored` returns groups of the buffer by id, for the scores of a repeated step."""
        self._state, self._rank, self._stored = state, rank, stored

    def before_record(self, record: BatchRecord, groups: Sequence[Group], considered: Considered) -> BatchRecord:
        return self._state.completed(record, groups, considered)

    def after_step(self, step: int, batch: AssembledBatch, metrics: dict[str, float]) -> None:
        if self._rank != 0:
            return
        if self._state.reads_scores and not batch.scores:  # a repeated step: its scores are still stored
            batch.scores.update({s.group.id: s.scores for s in self._stored(batch.record.groups)})
        self._state.update(batch)

    def save(self, directory: Path) -> None:
        self._state.save(directory)

    def load(self, directory: Path) -> None:
        self._state.load(directory)


def _refuse_earlier_methods(name: str, plugin: Any) -> None:
    if callable(getattr(plugin, "begin", None)) and callable(getattr(plugin, "after", None)):
        raise ConfigError(
            f"the plug-in '{name}' ({type(plugin).__name__}) has the methods 'begin' and 'after'. They are now "
            "'init_state' and 'update', and 'told' is 'metrics': rename them and derive the class from "
            "cluster.plugins.StatefulPlugin."
        )


def _called(name: str, method: Callable[..., Any], *args: Any) -> Any:
    """What the plug-in of that name answers. Raises PluginError for whatever it raises."""
    with calling(f"plug-in '{name}' ({method.__name__})"):
        return method(*args)
