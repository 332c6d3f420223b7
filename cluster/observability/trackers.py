"""Trackers: other places that a run's numbers go to, beside `metrics.jsonl`, which has them all.

    class Mine(Tracker):
        def open(self, directory, name, config) -> TrackedRun: ...

A tracker that fails while the run goes on is left out from then on, with a warning: no run ends for it.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import PositiveFloat

from cluster.config import TrackingSection
from cluster.errors import ConfigError, one_line
from cluster.plugins import Plugin, build

log = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("tracker_process.py")


class TrackedRun(Protocol):
    """One run as a tracker has it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite values of a step; several calls may have one step."""
        ...

    def close(self) -> None: ...


class Tracker(Plugin):
    """Subclasses hold options as fields."""

    def check(self) -> None:
        """Try before the run what can be tried. Raises ConfigError."""

    def open(self, directory: Path, name: str, config: Mapping[str, Any]) -> TrackedRun:
        """Begin a run of this name; `directory` is the run's own, `config` its recipe. Raises ConfigError."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Files in the run's directory, `tensorboard/`, for TensorBoard."""

    def open(self, directory: Path, name: str, config: Mapping[str, Any]) -> TrackedRun:
        return _Board(directory / "tensorboard")


class _Board:
    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(directory))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        with suppress(OSError):
            self._writer.close()


class Wandb(Tracker):
    """Weights & Biases; its package is an extra."""

    mode: Literal["offline", "online"] = "offline"
    """`online` needs WANDB_API_KEY, or `wandb login`."""

    def check(self) -> None:
        if find_spec("wandb") is None:
            raise ConfigError(
                f"tracking.wandb = '{self.mode}', but wandb is not installed. Run: pip install 'kanabo[wandb]', or "
                'set tracking.wandb = "off".'
            )
        if self.mode == "online" and not _logged_in():
            raise ConfigError(
                "tracking.wandb = 'online', but there is no key: set WANDB_API_KEY, or run `wandb login`, or set "
                'tracking.wandb = "offline".'
            )

    def open(self, directory: Path, name: str, config: Mapping[str, Any]) -> TrackedRun:
        self.check()
        return _WandbRun(self.mode, directory, name, config)


class _WandbRun:
    def __init__(self, mode: Literal["offline", "online"], directory: Path, name: str, config: Any) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(project="kanabo", name=name, dir=str(directory), mode=mode, config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class ChildTracker(Tracker):
    """A tracker whose package runs in a process of its own, perhaps of another virtual environment."""

    kind: ClassVar[str] = ""

    python: str = ""
    """The Python that has the package, such as `envs/mlflow/bin/python`; by default Kanabo's own."""
    project: str = "kanabo"
    """What the tracker files its runs under."""
    address: str = ""
    """The server that it writes to; by default files in the run's directory."""
    start_timeout_s: PositiveFloat = 120.0
    """How long the package may take to open a run."""

    def check(self) -> None:
        command = [self.python or sys.executable, "-c", f"import {self.kind}"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=self.start_timeout_s)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode("utf-8", "replace").strip().splitlines()
            raise ConfigError(
                f"tracking.trackers: '{self.kind}' cannot be imported by '{command[0]}': "
                f"{said[-1] if said else one_line(error)}. Install it there, or name another Python by options.python."
            ) from error

    def open(self, directory: Path, name: str, config: Mapping[str, Any]) -> TrackedRun:
        run = {"kind": self.kind, "project": self.project, "name": name, "address": self.address}
        return _Child(self.python or sys.executable, {**run, "directory": str(directory / self.kind)}, config)


class MlFlow(ChildTracker):
    """MLflow; `address` is its tracking URI."""

    kind: ClassVar[str] = "mlflow"


class Trackio(ChildTracker):
    """Trackio; `address` is the id of a Space."""

    kind: ClassVar[str] = "trackio"


class _Child:
    def __init__(self, python: str, run: dict[str, Any], config: Mapping[str, Any]) -> None:
        directory = Path(run["directory"])
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "log").open("ab") as errors:
            self._process = subprocess.Popen(
                [python, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._write({**run, "config": json.loads(json.dumps(config, default=str))})
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            code = self._process.wait()
            raise ConfigError(f"tracking.trackers: {run['kind']} ended with code {code}; {directory / 'log'} says why.")

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._write({"step": step, "values": values})

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


TRACKERS: dict[str, type[Tracker]] = {"mlflow": MlFlow, "tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def trackers(tracking: TrackingSection) -> list[Tracker]:
    """Return the trackers that a recipe asks for. Raises ConfigError."""
    found: list[Tracker] = [TensorBoard()] if tracking.tensorboard else []
    if tracking.wandb != "off":
        found.append(Wandb(mode=tracking.wandb))
    return found + [build(TRACKERS, t.use, t.options, "tracking.trackers") for t in tracking.trackers]


class Trackers:
    """The open runs of all trackers; one that fails is left out from then on."""

    def __init__(self, tracking: TrackingSection, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        self._runs = [(type(t).__name__, t.open(directory, name, config)) for t in trackers(tracking)]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, run in list(self._runs):
            try:
                run.log(step, values)
            except Exception as error:  # a package of others
                log.warning("%s takes no more values: %s. metrics.jsonl has them all.", name, one_line(error))
                self._runs.remove((name, run))

    def close(self) -> None:
        for name, run in self._runs:
            try:
                run.close()
            except Exception as error:  # a package of others
                log.warning("%s cannot be closed: %s", name, one_line(error))
