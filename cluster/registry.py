"""Models by alias, for whoever asks one: judges, references, generators.

policy@latest     the policy as it is now: its engines         judge:NAME       [judges.NAME]
policy@N          its checkpoint of step N                     distilled:NAME   [distilled.NAME]
RUN@N             another run's, by directory or name          initial          what the run began with
RUN@latest        that run's newest                            previous         the newest checkpoint, else initial
reference         learner.reference                            a directory      itself
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster import checkpoint
from cluster.config import RunConfig
from cluster.errors import ConfigError, nearest

POLICY, LATEST = "policy", "latest"
FIXED = ("initial", "previous", "reference")


@dataclass(frozen=True, slots=True)
class Model:
    """What an alias stands for now."""

    kind: Literal["directory", "live", "judge", "distilled"]
    where: str
    """A directory that engines load, or the name of the policy, of the judge, of the distilled model."""
    step: int = 0
    """Optimizer steps behind the weights, where it is a checkpoint."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The models of one run. `RUN@…` reads another run's directory and nothing else of it."""

    config: RunConfig
    run_dir: Path
    model_dir: str

    def resolve(self, alias: str) -> Model:
        """Raises ConfigError that lists what there is."""
        kind, colon, name = alias.partition(":")
        if colon and kind in ("judge", "distilled"):
            known = self.config.judges if kind == "judge" else self.config.distilled
            if name in known:
                return Model("judge" if kind == "judge" else "distilled", name)
            raise self._unknown(alias)
        if alias in FIXED:
            return self._fixed(alias)
        run, at, step = alias.rpartition("@")
        if at:
            return Model("live", POLICY) if alias == f"{POLICY}@{LATEST}" else self._checkpoint(alias, run, step)
        if (Path(alias) / "config.json").is_file():
            return Model("directory", str(Path(alias).absolute()))
        raise self._unknown(alias)

    def directory(self, alias: str) -> Model:
        """The same for who needs weights on disk. Raises ConfigError."""
        model = self.resolve(alias)
        if model.kind != "directory":
            raise ConfigError(f"'{alias}' has no directory: it is {_what(model)}. Name a checkpoint. {self._there()}")
        if not (Path(model.where) / "config.json").is_file():
            raise ConfigError(
                f"'{alias}' is an adapter without its model ('{model.where}'). `kanabo export` makes a model of both; "
                "name that directory."
            )
        return model

    def _fixed(self, alias: str) -> Model:
        if alias == "reference" and self.config.learner.reference not in ("reference", "initial"):
            return self.directory(self.config.learner.reference)
        found = checkpoint.committed(self.run_dir / "checkpoints")
        return _saved(found[-1]) if alias == "previous" and found else Model("directory", self.model_dir)

    def _checkpoint(self, alias: str, run: str, step: str) -> Model:
        beside = self.run_dir.parent / run  # a name, as the commands take it
        directory = self.run_dir if run == POLICY else beside if (beside / "checkpoints").is_dir() else Path(run)
        found = {str(_step(path)): path for path in checkpoint.committed(directory / "checkpoints")}
        if step == LATEST and found:
            return _saved(list(found.values())[-1])
        if step not in found:
            raise self._unknown(alias, directory)
        return _saved(found[step])

    def _unknown(self, alias: str, directory: Path | None = None) -> ConfigError:
        return ConfigError(f"there is no model '{alias}'. {self._there(alias, directory)}")

    def _there(self, alias: str = "", directory: Path | None = None) -> str:
        steps = [f"{POLICY}@{_step(path)}" for path in checkpoint.committed(self.run_dir / "checkpoints")]
        judges = [f"judge:{name}" for name in self.config.judges]
        known = [
            f"{POLICY}@{LATEST}",
            *steps,
            *FIXED,
            *judges,
            *(f"distilled:{name}" for name in self.config.distilled),
        ]
        said = f"{nearest(alias, known)}There are: {', '.join(known)}; RUN@N, and directories of models."
        if directory is not None and directory != self.run_dir:
            other = [str(_step(path)) for path in checkpoint.committed(directory / "checkpoints")]
            said += f" '{directory}' has checkpoints of steps {', '.join(other)}." if other else ""
            said += (
                "" if other else f" '{directory}' has no checkpoint: checkpoint.every_steps sets how many there are."
            )
        return said


def is_alias(name: str) -> bool:
    """Whether a name can only be an alias, and no path or id of a model."""
    return name in FIXED or "@" in name


def _saved(path: Path) -> Model:
    return Model("directory", str(path.absolute()), _step(path))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("global_step_"))


def _what(model: Model) -> str:
    return "the live policy" if model.kind == "live" else f"[{model.kind}s.{model.where}]"
