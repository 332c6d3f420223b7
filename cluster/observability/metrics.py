"""Where a run's numbers go: `metrics.jsonl` first, then Prometheus and trackers.

Names are `area/quantity_unit`; a value that is not finite is written as null, never as a number.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster.config import TrackingSection
from cluster.config.foreign_keys import new_metric
from cluster.observability.trace import TraceWriter
from cluster.observability.trackers import Trackers
from cluster.process.disk import FULL
from cluster.types.events import Span

log = logging.getLogger(__name__)

ALIASES = {
    "reward/mean": "critic/rewards/mean",
    "rollout/length_tokens": "response_length/mean",
    "eval/accuracy": "val/accuracy",
    "loss/policy": "actor/pg_loss",
    "loss/entropy_nats": "actor/entropy",
    "learner/grad_norm": "actor/grad_norm",
    "learner/step_s": "timing_s/step",
}
"""Names that dashboards made for other tools look for; trackers get both."""


Row = dict[str, Any]
"""Values by name, and their `step`; several rows may share one."""


class Sink(Protocol):
    def record(self, step: int, values: Mapping[str, float | None]) -> None: ...


class Recorder:
    """Appends to `metrics.jsonl` and `samples.jsonl` of one run directory, and tells `sinks` the same rows."""

    def __init__(
        self,
        directory: Path,
        tracking: TrackingSection,
        name: str,
        config: Mapping[str, Any],
        sinks: Sequence[Sink] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._sinks = sinks
        self._open()
        self._trace = TraceWriter(directory) if tracking.trace else None
        self._trackers = Trackers(tracking, directory, name, config)

    def _open(self) -> None:
        self._metrics = Lines(self.directory / "metrics.jsonl")
        self._samples = Lines(self.directory / "samples.jsonl")

    def forget_after(self, step: int) -> None:
        """Remove rows of a history that did not survive: those of steps after `step`."""
        self._metrics.close()
        self._samples.close()
        for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl"):
            path = self.directory / name
            if not path.exists():
                continue
            temporary = path.with_suffix(".tmp")
            with path.open(encoding="utf-8", errors="replace") as old, temporary.open("w", encoding="utf-8") as new:
                new.writelines(line for line in old if _survives(line, step))
            temporary.replace(path)
        self._open()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row; several rows may share a step."""
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._metrics.write(json.dumps({"step": step, **row}))
        for sink in self._sinks:
            sink.record(step, row)
        tracked = {k: v for k, v in row.items() if v is not None}
        tracked |= {ALIASES[k]: v for k, v in tracked.items() if k in ALIASES}
        self._trackers.log(step, tracked)

    def trace(self, worker: str, spans: Sequence[Span]) -> None:
        """Write what a worker did and when, for `kanabo trace`."""
        if self._trace is not None:
            self._trace.write(worker, spans)

    def sample(self, row: Mapping[str, Any]) -> None:
        """Write one rollout with its text, scores and advantage."""
        self._samples.write(json.dumps(row))

    def alarm(self, row: Mapping[str, Any]) -> None:
        """Write what a monitor said."""
        alarms = Lines(self.directory / "alarms.jsonl")
        alarms.write(json.dumps(row))
        alarms.close()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        if self._trace is not None:
            self._trace.close()
        self._trackers.close()


class Lines:
    """Appends lines to a file. What a full disk does not take is kept, and written before the next line."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, b""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: str) -> None:
        """Append one line. Raises OSError for what is no lack of room."""
        waited = bool(self._left)
        self._left += line.encode() + b"\n"
        try:
            while self._left:
                self._left = self._left[os.write(self._file, self._left) :]
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not waited:
                log.warning("%s cannot be written: %s. Its lines are kept until there is room.", self._path, error)

    def close(self) -> None:
        """Close the file; lines that it still does not take are lost."""
        try:
            if self._left:
                os.write(self._file, self._left)
        except OSError as error:
            log.warning("the last lines of %s are lost: %s", self._path, error)
        finally:
            os.close(self._file)


def read(directory: Path) -> list[Row]:
    """The rows of a run so far; a last line that a crash tore is left out."""
    return list(rows(directory))


def rows(directory: Path) -> Iterator[Row]:
    """Yield the rows of `read` one by one: a long run has more of them than should be held at once."""
    return _rows(directory / "metrics.jsonl")


def read_alarms(directory: Path) -> list[dict[str, Any]]:
    """What monitors have said, oldest first: monitor, step, metric, message, good."""
    alarms = _rows(directory / "alarms.jsonl")
    return [{"metric" if name == "signal" else name: value for name, value in alarm.items()} for alarm in alarms]


def read_samples(directory: Path) -> list[dict[str, Any]]:
    """Return the rollouts that a run wrote down so far, oldest first; see `storage.samples`."""
    return list(_rows(directory / "samples.jsonl"))


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a crash or damaged: the others count
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield {new_metric(name): value for name, value in row.items()}


def _survives(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
