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

from cluster import checkpoint, config, metrics, scale
from cluster.buffer import Buffer, Wishes
from cluster.console.detail import Pieces, describe
from cluster.console.groups import GroupIndex, Query
from cluster.errors import ConfigError

POLICY = "policy"
READ_BYTES = 2_000_000
"""Of metrics.jsonl, at most so much per answer."""
FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Alive:
    """What only a running run has."""

    buffer: Buffer
    standing: Callable[[], dict[str, Any]]
    model_dir: Path
    wishes: Wishes


class Source:
    """One run, to be read by any number of threads. It changes nothing, and asks Redis only when it is asked."""

    def __init__(self, directory: Path, alive: Alive | None = None) -> None:
        """Raises ConfigError if the directory holds no run."""
        if not (directory / "config.toml").exists():
            raise ConfigError(f"'{directory}' holds no run: there is no config.toml. Name a run's own directory.")
        self.directory, self._alive = directory, alive
        self._recipe = (directory / "config.toml").read_text("utf-8")
        self._settings = config.parse(tomllib.loads(self._recipe), where=str(directory / "config.toml"))
        self._pieces = Pieces(alive.model_dir if alive else _tokenizer_of(directory))
        self._index = GroupIndex(directory / "groups", alive.buffer if alive else None, POLICY)
        self._lock = threading.Lock()
        self._buffer_state: tuple[float, dict[str, Any] | None] = (-FRESH_S, None)

    def status(self) -> dict[str, Any]:
        """Where the run stands; `buffer` and `standing` are null once it has ended."""
        settings, summary = self._settings, self.directory / "summary.json"
        ended = self._alive is None and summary.exists()
        return {
            "name": settings.run.name,
            "directory": str(self.directory),
            "live": self._alive is not None,
            "time_s": time.time(),
            "steps": settings.learner.steps,
            "groups_per_step": settings.learner.groups_per_step,
            "group_size": settings.rollout.group_size,
            "max_staleness": settings.learner.max_staleness,
            "stall_s": settings.run.stall_s,
            "kept_groups": settings.tracking.kept_groups,
            "rewards": [
                {"name": name, "weight": r.weight, "when": r.when}
                for name, r in zip(settings.reward_names, settings.rewards, strict=True)
            ],
            "buffer": self._buffer(),
            "standing": self._alive.standing() if self._alive else None,
            "summary": json.loads(summary.read_text()) if ended else None,
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
            return {"rows": [], "next": "", "reset": True, "more": False}
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
        rows = [json.loads(line) for line in whole.splitlines()]
        return {
            "rows": rows,
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
            raise ConfigError("the run is not under way: there is nobody to join or leave it.")
        return scale.apply(self._alive.wishes, [f"{role}={count}"])

    def alarms(self) -> dict[str, Any]:
        """What the monitors have said, oldest first, and which there are."""
        monitors = [{"use": m.use, "on_alarm": m.on_alarm} for m in self._settings.monitors]
        return {"alarms": metrics.read_alarms(self.directory), "monitors": monitors}

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, and which of its keys are not the defaults."""
        changed = list(_changed(self._settings, config.RunConfig()))
        return {"text": self._recipe, "tree": tomllib.loads(self._recipe), "changed": changed}


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
