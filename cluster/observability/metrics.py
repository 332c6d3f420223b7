"""Where a run's numbers go: `metrics.jsonl` first, then Prometheus, TensorBoard and Weights & Biases.

Names are `area/quantity_unit`; a value that is not finite is written as null, never as a number.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from cluster.config import TrackingSection
from cluster.config.foreign_keys import new_metric
from cluster.errors import ConfigError
from cluster.process.disk import FULL

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
        self._board = _tensorboard(directory) if tracking.tensorboard else None
        self._wandb = _wandb(directory, tracking, name, config) if tracking.wandb != "off" else None

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
            kept = [
                line for line in path.read_text("utf-8", "replace").splitlines(keepends=True) if _survives(line, step)
            ]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
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
        self._draw(step, tracked)
        if self._wandb:
            self._wandb.log({**tracked, "step": step})

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        if not self._board:
            return
        try:
            self._board.add_event(_event(step, values))
        except OSError as error:  # its thread has ended, and says so at every later call
            log.warning("TensorBoard's file takes no more values: %s. metrics.jsonl has them all.", error)
            self._board = None

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
        if self._board:
            with suppress(OSError):
                self._board.close()
        if self._wandb:
            self._wandb.finish()


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
    return _rows(directory / "metrics.jsonl")


def read_alarms(directory: Path) -> list[dict[str, Any]]:
    """What monitors have said, oldest first: monitor, step, signal, message, good."""
    return _rows(directory / "alarms.jsonl")


def read_samples(directory: Path) -> list[dict[str, Any]]:
    """Return the rollouts that a run wrote down so far, oldest first; see `storage.samples`."""
    return _rows(directory / "samples.jsonl")


def _rows(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn by a crash or damaged: the others count
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append({new_metric(name): value for name, value in row.items()})
    return rows


def _survives(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _tensorboard(directory: Path) -> Any:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    return EventFileWriter(str(directory / "tensorboard"))


def _event(step: int, values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))


def check_wandb(tracking: TrackingSection) -> None:
    """Weights & Biases can be written to as the recipe asks. Raises ConfigError."""
    if tracking.wandb == "off":
        return
    if find_spec("wandb") is None:
        raise ConfigError(
            f"tracking.wandb = '{tracking.wandb}', but wandb is not installed. Run: pip install 'kanabo[wandb]', or "
            'set tracking.wandb = "off".'
        )
    if tracking.wandb == "online" and not _logged_in():
        raise ConfigError(
            "tracking.wandb = 'online', but there is no key: set WANDB_API_KEY, or run `wandb login`, or set "
            'tracking.wandb = "offline".'
        )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb(directory: Path, tracking: TrackingSection, name: str, config: Mapping[str, Any]) -> Any:
    check_wandb(tracking)
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(project="kanabo", name=name, dir=str(directory), mode=tracking.wandb, config=dict(config))
