"""Start, watch and stop a run from Python.

The run is a child process, `python -m cluster.run` on a recipe that is written beside the run's directory: Ray and the
engines stay out of a notebook's kernel, and a kernel that ends leaves the run going.

    runs/NAME/        the run's directory
    runs/NAME.toml    the recipe with its overrides
    runs/NAME.log     what the run prints
    runs/NAME_….py    a reward of this process, as source
"""

from __future__ import annotations

import copy
import json
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from cluster import config as recipes
from cluster.config import RunConfig
from cluster.errors import ConfigError, KanaboError
from cluster.import_path import ROOT
from cluster.observability import metrics
from cluster.storage import checkpoint, group_archive
from cluster.storage.group_archive import ArchivedGroup
from kanabo.sources import name_of

CLOSE_S = 30.0
"""Beyond `run.shutdown_timeout_s`: time that a run has to end its workers."""
LOOK_S = 0.5
TAIL_CHARS = 2000
STOPPED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a run that was asked to stop; the last two if the signal came before the run had a handler for it."""

Recipe = str | Path | Mapping[str, Any] | RunConfig


class RunFailed(KanaboError):
    """A run ended with a failure; the message is its cause."""


def load(recipe: Recipe, **overrides: Any) -> RunConfig:
    """Return the checked configuration that a recipe and `overrides` make.

    `recipe` is a file, the name of a recipe that `kanabo recipes` lists, a dict of sections, or a configuration. An
    override is a section with some of its keys, `learner={"steps": 40}`, or a dotted key, `**{"learner.steps": 40}`.
    `rewards` is a list: names, dicts with the keys of `[[rewards]]`, and functions or subclasses of `Reward`, alone or
    as `use`. The source of one that is defined in this process goes to a file in `run.dir`. Raises ConfigError.
    """
    tree = recipes.merged(_tree(recipe), overrides)
    if "rewards" in tree:
        where = recipes.parse({"run": tree.get("run", {})}).run
        tree["rewards"] = _named(tree["rewards"], Path(where.dir).absolute(), where.name)
    return recipes.parse(tree, where="recipe" if isinstance(recipe, Mapping | RunConfig) else str(recipe))


def run(recipe: Recipe, **overrides: Any) -> Run:
    """Start a run of what `load` makes of the arguments, and return its handle at once.

    A run of the same `run.name` that has ended is continued. Raises ConfigError for a recipe that is not valid; what
    only the start can tell is raised by `Run.wait`.
    """
    settings = load(recipe, **overrides)
    base = Path(settings.run.dir).absolute()
    base.mkdir(parents=True, exist_ok=True)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"dir": str(base)})})
    path, log = (base / f"{settings.run.name}{suffix}" for suffix in (".toml", ".log"))
    path.touch(mode=0o600)  # it may hold a password
    path.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)), "utf-8")
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        # -P: no module of the working directory comes before Kanabo's; the run itself appends the directory.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.run", str(path)],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the caller alone, which decides what becomes of the run
        )
    return Run(base / settings.run.name, process, log, begin, settings.run.shutdown_timeout_s + CLOSE_S)


def train(recipe: Recipe, **overrides: Any) -> Run:
    """Run what `load` makes of the arguments, print what the run prints, and return its handle when it has ended.

    Ctrl-C, or a notebook's interrupt, stops the run: it finishes its step and saves. Raises ConfigError and RunFailed.
    """
    handle = run(recipe, **overrides)
    try:
        for text in handle.follow():
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        handle.stop()
        raise
    handle.wait()
    return handle


class Run:
    """A run and its directory. `Run("runs/NAME")` reads a run that another process started."""

    def __init__(
        self,
        directory: str | Path,
        process: subprocess.Popen[bytes] | None = None,
        log: Path | None = None,
        log_begin: int = 0,
        stop_s: float = CLOSE_S,
    ) -> None:
        """`log_begin`: where this start's part of the log begins; `stop_s`: time from `stop` to a kill."""
        self.directory = Path(directory).absolute()
        self.log = log or self.directory.with_name(f"{self.directory.name}.log")
        self._process, self._log_begin, self._stop_s = process, log_begin, stop_s

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def running(self) -> bool:
        """Whether the process that this handle started is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def checkpoint(self) -> Path | None:
        """Directory of the newest checkpoint, which `AutoModelForCausalLM.from_pretrained` loads."""
        return next(reversed(checkpoint.committed(self.directory / "checkpoints")), None)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures that a run writes at its end; None before."""
        path = self.directory / "summary.json"
        return None if self.running or not path.is_file() else json.loads(path.read_text("utf-8"))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl so far, each with its `step`; several rows may share one."""
        return metrics.read(self.directory)

    def samples(self) -> list[dict[str, Any]]:
        """Return the rows of samples.jsonl so far: prompt, text, scores, reward and advantage of some rollouts."""
        return metrics.read_samples(self.directory)

    def groups(self, step: int | None = None) -> Iterator[ArchivedGroup]:
        """Yield the archived groups that the run, or one step of it, was trained on, oldest first."""
        for path in group_archive.files(self.directory / "groups"):
            if step is None or group_archive.step_of(path) == step:
                for entry in group_archive.try_index(path) or ():
                    try:
                        yield group_archive.read(path, entry)
                    except FileNotFoundError:  # a live run removes its oldest
                        break

    def follow(self) -> Iterator[str]:
        """Yield what the run prints, from its start until it has ended."""
        process = self._started()
        with self.log.open("rb") as log:
            log.seek(self._log_begin)
            while True:
                ended = process.poll() is not None  # before reading: what is printed last is read, too
                if text := log.read().decode(errors="replace"):
                    yield text
                elif ended:
                    return
                else:
                    time.sleep(LOOK_S)

    def wait(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Wait for the end of the run; return its summary.

        Raises ConfigError if the recipe cannot run, RunFailed with the cause if the run failed, and TimeoutError.
        """
        process = self._started()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"run '{self.name}' has not ended within {timeout_s:g} s.") from None
        if code == 2:
            raise ConfigError(self._printed("error "))
        if code:
            raise RunFailed(self._cause(code))
        return self.summary

    def stop(self) -> dict[str, Any] | None:
        """Ask the run to stop: it finishes its step, saves and leaves within `run.shutdown_timeout_s`.

        Return its summary, None if it had not begun. Raises RunFailed if it failed, or had to be killed.
        """
        process = self._started()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            if process.wait(self._stop_s) in STOPPED:
                return self.summary
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RunFailed(
                f"run '{self.name}' did not stop within {self._stop_s:g} s and was killed. Its next start continues "
                f"from {self.checkpoint or 'the first step'}. Its output is in {self.log}."
            ) from None
        return self.wait()

    def __repr__(self) -> str:
        state = "running" if self.running else "not running"
        return f"<Run {self.directory}, {state}>"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise KanaboError(
                f"run '{self.name}' was not started by this handle, which can only read {self.directory}."
            )
        return self._process

    def _cause(self, code: int) -> str:
        """Why the run ended with this exit code, in words."""
        if code < 0:
            return f"run '{self.name}' was ended by {signal.Signals(-code).name}. Its output is in {self.log}."
        return f"run '{self.name}' failed: {self._printed('failed ')}"

    def _printed(self, mark: str) -> str:
        """What this start printed last behind a line's mark, else the end of its output."""
        with self.log.open("rb") as log:
            log.seek(self._log_begin)
            text = log.read().decode(errors="replace").strip()
        _, found, message = f"\n{text}".rpartition(f"\n{mark}")
        return message if found else text[-TAIL_CHARS:]


def _tree(recipe: Recipe) -> dict[str, Any]:
    if isinstance(recipe, RunConfig):
        return recipe.model_dump(mode="json", exclude_none=True)
    return copy.deepcopy(dict(recipe)) if isinstance(recipe, Mapping) else recipes.tree(recipe)


def _named(rewards: Any, directory: Path, prefix: str) -> list[Any]:
    """Return `rewards` with a section for each, and a name in place of each function or class."""

    def named(use: Any) -> Any:
        return name_of(use, directory, prefix) if isinstance(use, Callable) else use

    listed = rewards if isinstance(rewards, list | tuple) else [rewards]
    sections = [dict(item) if isinstance(item, Mapping) else {"use": item} for item in listed]
    return [section | {"use": named(section["use"])} if "use" in section else section for section in sections]


def _environment() -> dict[str, str]:
    """Environment of the run's process: Kanabo is found where this process found it, and its output has no colours."""
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    if ROOT not in map(os.path.realpath, site.getsitepackages()):
        paths = [ROOT, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
