"""Trained groups that outlive the buffer: the last few thousand, on disk, for people to look at.

    groups/step_00000017.kept   length of the index, index (MessagePack), then one encoded `ArchivedGroup` after another

One file a step, written beside the step by a thread and renamed into place: a reader finds whole files only. Lists
are made from the indices; the tokens of a group are read when somebody opens it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from cluster.process.disk import Written, written_at_once
from cluster.types import BatchRecord, Group, Scores, decode, encode

NAME = re.compile(r"step_\d+\.kept")
PROMPT_CHARACTERS = 300
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """What a list shows of a group, without its tokens."""

    id: str
    task: str
    prompt: str
    """Its first `PROMPT_CHARACTERS` characters."""
    epoch: int
    version: int
    num_rollouts: int
    length_tokens: float
    """Tokens the policy chose, mean over the rollouts."""
    truncated: int
    step: int | None = None
    """Optimizer steps after the one that trained on it, as in metrics.jsonl; None before its batch is assembled."""
    rewards: tuple[float, ...] = ()
    """Mixed, per rollout, NaN for one that is left out; empty before its batch is assembled."""
    means: dict[str, float] = field(default_factory=dict)
    """Mean known score by reward, NaN if none is known."""
    unknown: int = 0
    """Scores that failed or abstained, over all rewards."""
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class ArchivedGroup:
    """A group as it was trained on."""

    group: Group
    step: int
    rewards: np.ndarray
    """[G] float64, NaN for a rollout that is left out."""
    advantages: tuple[np.ndarray, ...]
    """Per rollout: [1] (one for all its tokens) or [T] float32."""
    scores: dict[str, Scores]
    logprobs: tuple[np.ndarray, ...] = ()
    """Per rollout [T] float32: what the learner gave its tokens before the step, nats; NaN where it did not, or where
    another rank did. Empty if nobody said."""


def glance(group: Group, scores: Mapping[str, Scores]) -> GroupSummary:
    return GroupSummary(
        id=group.id,
        task=group.task.id,
        prompt=next(iter(group.task.variants.values()))[-1].content[:PROMPT_CHARACTERS],
        epoch=group.claim.epoch,
        version=group.version,
        num_rollouts=len(group),
        length_tokens=float(np.mean([r.num_tokens for r in group.rollouts])),
        truncated=sum(r.truncated for r in group.rollouts),
        means={name: _mean(s.values) for name, s in scores.items()},
        unknown=sum(int((~np.isfinite(s.values)).sum()) for s in scores.values()),
    )


class GroupArchive:
    """Writes what a step trained on, in a thread of its own, and removes the oldest beyond `limit` groups."""

    def __init__(self, directory: Path, limit: int, done: int = 0, written: Written = written_at_once) -> None:
        """`done`: steps of the history that is continued; files of later ones belong to a dead one."""
        self._directory, self._limit, self._written = directory, limit, written
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="kept-groups")
        self._under_way: Future[None] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._counts = {path: len(found) for path in files(directory) if (found := try_index(path)) is not None}
        for path in [p for p in self._counts if step_of(p) > done]:
            path.unlink()
            del self._counts[path]

    def add(
        self,
        step: int,
        groups: Sequence[Group],
        record: BatchRecord,
        scores: Mapping[str, Mapping[str, Scores]],
        logprobs: Sequence[tuple[np.ndarray, ...]] = (),
    ) -> None:
        """Keep the groups of a step, with the learner's `logprobs` by group and rollout if it said any. Waits for the
        write before, and raises what that raised.
        """
        self.finish()
        if not groups:
            return
        write = partial(self._write, step, groups, record, scores, logprobs)
        self._under_way = self._writer.submit(self._written, write, f"the archive of step {step}")

    def finish(self) -> None:
        """Wait for the write under way; raises OSError if it failed."""
        if self._under_way is not None:
            self._under_way.result()

    def _write(
        self,
        step: int,
        groups: Sequence[Group],
        record: BatchRecord,
        scores: Mapping[str, Mapping[str, Scores]],
        logprobs: Sequence[tuple[np.ndarray, ...]],
    ) -> None:
        entries, bodies, offset = [], [], 0
        said = logprobs or [()] * len(groups)
        credit = list(zip(groups, record.rewards, record.advantages, said, strict=True))[-self._limit :]
        for group, rewards, advantages, learners in credit:
            evidence = dict(scores.get(group.id, {}))
            body = encode(ArchivedGroup(group, step, rewards, advantages, evidence, learners))
            found = glance(group, evidence)
            mixed = tuple(map(float, rewards))
            entries.append(replace(found, step=step, rewards=mixed, offset=offset, size=len(body)))
            bodies.append(body)
            offset += len(body)
        path = self._directory / f"step_{step:08d}.kept"
        temporary = path.with_suffix(".tmp")
        head = encode(entries)
        with temporary.open("wb") as file:
            file.writelines([_LENGTH.pack(len(head)), head, *bodies])
        temporary.replace(path)
        self._counts[path] = len(entries)
        while sum(self._counts.values()) > self._limit:
            oldest = min(self._counts)
            oldest.unlink()
            del self._counts[oldest]


def files(directory: Path) -> list[Path]:
    """In the order of steps; other names beside them are not ours."""
    found = [p for p in directory.glob("step_*.kept") if NAME.fullmatch(p.name) and p.is_file() and not p.is_symlink()]
    return sorted(found, key=step_of)


def try_index(path: Path) -> list[GroupSummary] | None:
    """What a file holds; None for one that is damaged, or was removed meanwhile."""
    try:
        return index(path)
    except (OSError, ValueError, struct.error, OverflowError, MemoryError):
        return None


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def index(path: Path) -> list[GroupSummary]:
    """What a file holds. Raises FileNotFoundError if it was removed meanwhile."""
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > path.stat().st_size:
            raise ValueError(f"'{path}' is damaged: its index would be longer than the file.")
        found = decode(file.read(length), list[GroupSummary])
        if sum(entry.size for entry in found) + _LENGTH.size + length > path.stat().st_size:
            raise ValueError(f"'{path}' is damaged: groups at its end are missing.")
        return found


def read(path: Path, entry: GroupSummary) -> ArchivedGroup:
    """One group, tokens included. Raises FileNotFoundError if its file was removed meanwhile."""
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        file.seek(_LENGTH.size + length + entry.offset)
        return decode(file.read(entry.size), ArchivedGroup)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
