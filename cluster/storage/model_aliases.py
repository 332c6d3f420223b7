"""Models by alias, for whoever asks one: judges, references, generators.

policy@latest     the policy as it is now: its engines         judge:NAME       [judges.NAME]
policy@N          its checkpoint of step N                     reward_model:NAME   [reward_models.NAME]
RUN@N             another run's, by directory or name          initial          what the run began with
RUN@latest        that run's newest                            previous         the newest checkpoint, else initial
RUN@initial       what another run began with                  previous@N       the Nth newest, previous being the first
reference         learner.reference                            a directory      itself

`previous` counts the checkpoints of `checkpoint.every_steps` alone, so that a stopped and resumed run has the same one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.config import RunConfig, load
from cluster.errors import ConfigError, nearest
from cluster.storage import checkpoint

POLICY, LATEST = "policy", "latest"
FIXED = ("initial", "previous", "reference")
INITIAL = "initial_model.txt"
"""In a run's directory: where the weights are that it began with."""
PREVIOUS = re.compile(r"previous(?:@([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Model:
    """What an alias stands for now."""

    kind: Literal["directory", "live", "judge", "reward_model"]
    where: str
    """A directory that engines load, or the name of the policy, of the judge, of the reward model."""
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
        if colon and kind in ("judge", "reward_model"):
            known = self.config.judges if kind == "judge" else self.config.reward_models
            if name in known:
                return Model("judge" if kind == "judge" else "reward_model", name)
            raise self._unknown(alias)
        if alias in FIXED or PREVIOUS.fullmatch(alias):
            return self._fixed(alias)
        run, at, step = alias.rpartition("@")
        if at:
            return Model("live", POLICY) if alias == f"{POLICY}@{LATEST}" else self._checkpoint(alias, run, step)
        if (Path(alias) / "config.json").is_file():
            return Model("directory", str(Path(alias).absolute()))
        raise self._unknown(alias)

    def directory(self, alias: str) -> Model:
        """Return what an alias stands for, if its weights lie on disk. Raises ConfigError."""
        model = self.resolve(alias)
        if model.kind != "directory":
            raise ConfigError(f"'{alias}' has no directory: it is {_what(model)}. Name a checkpoint. {self._there()}")
        if not (Path(model.where) / "config.json").is_file():
            raise ConfigError(
                f"'{alias}' is an adapter without its model ('{model.where}'). `kanabo export` makes a model of both; "
                "name that directory."
            )
        return model

    def meant(self, alias: str) -> str:
        """The alias itself, or the one that `learner.reference` is."""
        meant = self.config.learner.reference if alias == "reference" else alias
        return "initial" if meant == "reference" else meant

    def moves(self, alias: str) -> bool:
        """Whether an alias comes to stand for other weights while a run goes on."""
        meant = self.meant(alias)
        return bool(PREVIOUS.fullmatch(meant)) or meant.endswith(f"@{LATEST}")

    def retained(self) -> set[Path]:
        """Checkpoints that the recipe's aliases name, also if the run goes on from another one of the newest."""
        numbered, last = checkpoint.rounds(self.run_dir / "checkpoints")
        stay: set[Path] = set()
        for alias in named(self.config).values():
            if back := behind(self.meant(alias)):
                oldest = last - (back - 1) - (self.config.checkpoint.keep_last - 1)
                stay |= {path for number, path in numbered.items() if number >= oldest}
            run, _, step = alias.rpartition("@")
            if run == POLICY:
                stay.add(self.run_dir / "checkpoints" / f"global_step_{step}")
        return stay

    def _fixed(self, alias: str) -> Model:
        meant = self.meant(alias)
        if alias == "reference" and meant != "initial":
            return self.directory(meant)
        return self._previous(alias, back) if (back := behind(alias)) else Model("directory", self.model_dir)

    def _previous(self, alias: str, back: int) -> Model:
        """Raises ConfigError where that checkpoint has been removed: the first weights would be another model."""
        numbered, last = checkpoint.rounds(self.run_dir / "checkpoints")
        number = last - back + 1
        if number < 1:
            return Model("directory", self.model_dir)
        if number not in numbered:
            raise ConfigError(
                f"'{alias}' is the checkpoint number {number} of {last} of '{self.run_dir}', which has been removed. "
                f"Raise checkpoint.keep_last to {back} before the run begins, or name another model. {self._there()}"
            )
        return _saved(numbered[number])

    def _checkpoint(self, alias: str, run: str, step: str) -> Model:
        beside = self.run_dir.parent / run  # a name, as the commands take it
        directory = self.run_dir if run == POLICY else beside if (beside / "checkpoints").is_dir() else Path(run)
        if step == "initial" and (directory / "config.toml").is_file():
            return Model("directory", first_weights(directory))
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
            *(f"reward_model:{name}" for name in self.config.reward_models),
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


def behind(alias: str) -> int:
    """How many checkpoints back an alias `previous` or `previous@N` looks, the newest being 1; 0 of another alias."""
    match = PREVIOUS.fullmatch(alias)
    return int(match[1] or 1) if match else 0


def named(config: RunConfig) -> dict[str, str]:
    """The aliases of a recipe, by the keys that name them."""
    generators = {f"generators.{name}.model": section.model for name, section in config.generators.items()}
    scorers = {f"scorers.{name}.model": s.model for name, s in config.scorers.items() if s.model != POLICY}
    judges = {f"judges.{name}.model": j.model for name, j in config.judges.items() if is_alias(j.model)}
    return {**generators, **scorers, **judges, "learner.reference": config.learner.reference}


def pinned(config: RunConfig, run_dir: Path) -> RunConfig:
    """The recipe with the checkpoint that a reference `RUN@latest` was when this run began, or is now at its beginning.

    Raises ConfigError if RUN has none.
    """
    run, _, step = config.learner.reference.rpartition("@")
    if step != LATEST or run == POLICY:
        return config
    stored = run_dir / "config.toml"
    before = load(stored).learner.reference if stored.is_file() else ""
    if before.rpartition("@")[0] == run and before != config.learner.reference:
        reference = before
    else:
        try:
            reference = f"{run}@{Registry(config, run_dir, '').directory(config.learner.reference).step}"
        except ConfigError as error:
            raise ConfigError(f"learner.reference = '{config.learner.reference}': {error}") from error
    return config.model_copy(update={"learner": config.learner.model_copy(update={"reference": reference})})


def first_weights(run_dir: Path) -> str:
    """The directory of the weights that the run in `run_dir` began with. Raises ConfigError if they are gone."""
    file = run_dir / INITIAL
    where = Path(file.read_text("utf-8") if file.is_file() else load(run_dir / "config.toml").model.path).expanduser()
    if not (where / "config.json").is_file():
        raise ConfigError(
            f"'{run_dir}@initial' is '{where}', which is no directory of a model on this machine. Name a directory."
        )
    return str(where.absolute())


def _saved(path: Path) -> Model:
    return Model("directory", str(path.absolute()), _step(path))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("global_step_"))


def _what(model: Model) -> str:
    return "the live policy" if model.kind == "live" else f"[{model.kind}s.{model.where}]"
