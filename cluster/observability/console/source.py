"""What a run has to show: its directory, and while it runs its buffer and its supervisor."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster import config
from cluster.buffer import Buffer, ReplicaCounts, scaling
from cluster.errors import ConfigError
from cluster.metrics import metric_of
from cluster.observability import metrics
from cluster.observability.console.detail import Pieces, describe
from cluster.observability.console.groups import GroupIndex, Query
from cluster.observability.trace import chrome_trace, read
from cluster.storage import checkpoint

POLICY = "policy"
READ_BYTES = 2_000_000
"""Most bytes of metrics.jsonl in one answer."""
FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Alive:
    """What only a running run has."""

    buffer: Buffer
    standing: Callable[[], dict[str, Any]]
    model_dir: Path
    wishes: ReplicaCounts


class Source:
    """One run, to be read by any number of threads. It changes nothing, and asks Redis only when it is asked."""

    def __init__(self, directory: Path, alive: Alive | None = None) -> None:
        """Raises ConfigError if the directory holds no run."""
        if not (directory / "config.toml").exists():
            raise ConfigError(f"'{directory}' holds no run: there is no config.toml. Name a run's own directory.")
        self.directory, self._alive = directory, alive
        where = directory / "config.toml"
        try:
            self._recipe = where.read_text("utf-8")
            tree = tomllib.loads(self._recipe)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where} cannot be read: {error}. Restore it, or remove the directory.") from error
        self._settings = config.parse(config.with_new_names(tree), where=str(where))
        self._pieces = Pieces(alive.model_dir if alive else _tokenizer_of(directory))
        self._index = GroupIndex(directory / "groups", alive.buffer if alive else None, POLICY)
        self._lock = threading.Lock()
        self._buffer_state: tuple[float, dict[str, Any] | None] = (-FRESH_S, None)

    def status(self) -> dict[str, Any]:
        """Where the run stands; `buffer` and `standing` are null once it has ended."""
        settings, summary = self._settings, self.directory / "summary.json"
        ended = self._alive is None and summary.exists()
        buffer = self._buffer()
        standing = self._alive.standing() if self._alive else None
        if buffer is not None and standing is not None:
            standing = in_agreement(standing, buffer, settings.learner.steps, settings.learner.groups_per_step)
        return {
            "name": settings.run.name,
            "directory": str(self.directory),
            "live": self._alive is not None,
            "time_s": time.time(),
            "steps": settings.learner.steps,
            "groups_per_step": settings.learner.groups_per_step,
            "group_size": settings.rollout.group_size,
            "max_staleness": settings.learner.max_staleness,
            "progress_timeout_s": settings.run.progress_timeout_s,
            "archived_groups": settings.tracking.archived_groups,
            "rewards": [
                {"name": name, "weight": r.weight, "blocking": r.blocking}
                for name, r in zip(settings.reward_names, settings.rewards, strict=True)
            ],
            "buffer": buffer,
            "standing": standing,
            "summary": _row(summary.read_bytes()) if ended else None,
        }

    def _buffer(self) -> dict[str, Any] | None:
        if self._alive is None:
            return None
        with self._lock:
            asked, state = self._buffer_state
            if time.monotonic() - asked >= FRESH_S:
                state = self._alive.buffer.status(POLICY)
                self._buffer_state = (time.monotonic(), state)
            return state

    def metrics(self, after: str) -> dict[str, Any]:
        """Rows written since the place that the last answer named; `reset` when the history before is void."""
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return {"rows": [], "meanings": {}, "next": "", "reset": True, "more": False}
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            match = re.fullmatch(r"(\d{1,20})-(\d{1,18})", after, re.ASCII)
            # A resumed run writes a file anew, without the rows of steps that did not survive.
            known = match is not None and match[1] == str(found.st_ino) and int(match[2]) <= found.st_size
            start = int(match[2]) if match is not None and known else 0
            file.seek(start)
            block = file.read(READ_BYTES)
        whole = block[: block.rfind(b"\n") + 1]
        end = start + len(whole)
        rows = [row for line in whole.splitlines() if (row := _row(line)) is not None]
        return {
            "rows": rows,
            "meanings": {name: _meaning(name) for name in sorted({name for row in rows for name in row} - {"step"})},
            "next": f"{found.st_ino}-{end}",
            "reset": not known,
            "more": bool(rows) and end < found.st_size,
        }

    def groups(self, query: Query) -> dict[str, Any]:
        return self._index.find(query)

    def group(self, id: str) -> dict[str, Any] | None:
        found = self._index.get(id)
        return describe(found, self._pieces) if found else None

    def leased(self) -> dict[str, int]:
        """Groups that each rollout worker has in hand."""
        return self._index.leased()

    def staff(self) -> dict[str, dict[str, int]]:
        """Role → workers that are up, and that are wished for; nothing once the run has ended."""
        if self._alive is None:
            return {}
        up, wished = self._alive.wishes.staffed(), self._alive.wishes.wished()
        return {role: {"up": count, "wished": wished.get(role, count)} for role, count in sorted(up.items())}

    def scale(self, role: str, count: int) -> dict[str, int]:
        """Wish for so many workers of a role. Raises ConfigError."""
        if self._alive is None:
            raise ConfigError("the run has ended: no worker can join or leave it.")
        if not 1 <= count <= scaling.MAX_WORKERS:  # with a sign it would count from what is there
            raise ConfigError(f"A run has from 1 to {scaling.MAX_WORKERS:,} workers of a role.")
        return scaling.apply(self._alive.wishes, [f"{role}={count}"])

    def alarms(self) -> dict[str, Any]:
        """What the monitors have said, oldest first, and which there are."""
        monitors = [{"use": m.use, "on_alarm": m.on_alarm} for m in self._settings.monitors]
        return {"alarms": metrics.read_alarms(self.directory), "monitors": monitors}

    def trace(self, last_s: float) -> dict[str, Any]:
        """What every worker did in the run's last seconds, as Chrome's trace events."""
        return chrome_trace(read(self.directory), last_s)

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, and which of its keys are not the defaults."""
        changed = list(_changed(self._settings, config.RunConfig()))
        return {"text": self._recipe, "tree": tomllib.loads(self._recipe), "changed": changed}


def _meaning(name: str) -> dict[str, str]:
    """Return what a chart says of a metric: its unit, and its help with what to do when it is off."""
    metric = metric_of(name)
    return {"unit": metric.unit, "help": ". ".join(filter(None, (metric.help, metric.advice)))}


def _row(line: bytes) -> dict[str, Any] | None:
    """A JSON object that a run has written; None for what a full disk or a hand has made of it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def in_agreement(standing: dict[str, Any], buffer: dict[str, Any], steps: int, groups_per_step: int) -> dict[str, Any]:
    """What the run waits for, and what its actors do, as of one moment: that of the buffer's state.

    Actors are asked every few seconds and say what they did then. A learner takes many steps meanwhile, so its place in
    the pipeline is read from the buffer: the page would else say that a step is trained and the learner waits for it.
    """
    groups, version = buffer["groups"], buffer["version"]
    step, ready = version + 1, groups["ready"]
    if groups["assembled"]:
        learner = f"trains step {step}"
        now = f"Step {step} is being trained, on {_count(groups['assembled'])}"
    elif version >= steps:
        learner = "has taken its last step"
        now = f"All {steps} steps are trained; what is left is the last checkpoint and evaluation"
    elif ready >= groups_per_step:
        learner = f"takes the groups of step {step}"
        now = f"Step {step} begins: {ready} of {groups_per_step} groups are ready"
    else:
        learner = f"waits for the groups of step {step}"
        now = (
            f"The learner waits for the groups of step {step}: {ready} of {groups_per_step} are ready, "
            f"{groups['leased']} are being sampled, {groups['pending']} wait for scores"
        )
    actors = [{**actor, "says": learner} if _in_the_pipeline(actor, version) else actor for actor in standing["actors"]]
    ranks = (actor for actor in standing["actors"] if actor["name"].startswith("learner"))
    known = version >= steps or any(STEP.match(rank["says"]) for rank in ranks)  # else it starts, or starts again
    return {**standing, "actors": actors, "waiting": now if known else standing["waiting"]}


STEP = re.compile(r"(?:waits for the groups of|trains|takes the groups of|saves) step (\d+)|publishes version (\d+)")
"""What a learner says of its place in the pipeline."""


def _in_the_pipeline(actor: dict[str, Any], version: int) -> bool:
    """Whether this is a learner's rank whose last words name a place that the buffer knows better."""
    said = STEP.match(actor["says"]) if actor["name"].startswith("learner") else None
    if said is None:
        return False
    publishing = said[2] is not None and int(said[2]) in (version, version + 1)
    saving = actor["says"].startswith(f"saves step {version} ")
    return not (publishing or saving)


def _count(groups: int) -> str:
    return f"{groups} group{'' if groups == 1 else 's'}"


def _changed(value: Any, usual: Any, key: str = "") -> Iterator[str]:
    """Keys that are not at their defaults; of a section that is named or listed, those that are not at its own."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            known = getattr(usual, name) if type(usual) is type(value) else field.get_default(call_default_factory=True)
            yield from _changed(getattr(value, name), known, f"{key}.{name}" if key else name)
    elif isinstance(value, dict) and any(isinstance(each, BaseModel) for each in value.values()):
        for name, each in value.items():
            yield from _changed(each, None, f"{key}.{name}")
    elif isinstance(value, tuple | list) and any(isinstance(each, BaseModel) for each in value):
        for i, each in enumerate(value):
            yield from _changed(each, None, f"{key}[{i}]")
    elif value != usual:
        yield key


def _tokenizer_of(directory: Path) -> Path | None:
    """A finished run's newest checkpoint holds the tokenizer."""
    found = [p for p in checkpoint.committed(directory / "checkpoints") if (p / "tokenizer_config.json").exists()]
    return found[-1] if found else None
