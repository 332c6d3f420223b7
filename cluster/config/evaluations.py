"""`[evaluation]` and `[[evaluations]]`: what is measured on tasks that are never trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.config.base import Section, Use
from cluster.config.rewards import RewardSection

VOTES = ("majority", "weighted", "borda", "self_prm")
"""How one of several samples of a task is chosen."""


class EvaluationSection(Section):
    every_steps: NonNegativeInt = 0
    """0: only before the first and after the last step."""
    max_tasks: PositiveInt = 1000
    """Evaluation tasks, one rollout each."""
    reward: str = ""
    """The reward whose mean is the evaluation accuracy, by default the first. A vote calls any lone rollout right."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""

    def due(self, step: int) -> bool:
        """Whether the weights of a step within the run are evaluated."""
        return self.every_steps > 0 and step % self.every_steps == 0


class NamedEvaluationSection(Section):
    """`[[evaluations]]`: a further evaluation with tasks, environment, rewards and voter of its own; its metrics are
    `eval/NAME/…`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name in metrics: letters, digits, dashes and underscores."""
    every_steps: NonNegativeInt = 0
    """0: only before the first and after the last step."""
    max_tasks: PositiveInt = 1000
    """The first so many evaluation tasks of its source."""
    tasks: Use | None = None
    """Source of its tasks, by default that of `[tasks]`. A source without evaluation tasks is asked for those that it
    would train on."""
    environment: Use | None = None
    """What answers the policy, by default `rollout.environment`."""
    rewards: tuple[RewardSection, ...] = ()
    """Rewards that this evaluation alone asks: nothing of them is trained on, and `weight`, `shape` and `missing` mean
    nothing. Each one sees a lone rollout."""
    reward: str = ""
    """The reward whose mean is the accuracy: one of its own or of the recipe's. By default the first of its own that
    is not `by`, else that of `[evaluation]`."""
    samples: PositiveInt = 1
    """Rollouts per task."""
    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy; by default 0, or 1 with several samples."""
    vote: Literal["", "majority", "weighted", "borda", "self_prm"] = ""
    """How one sample of each task is chosen, as with `kanabo evaluate --vote`."""
    by: str = ""
    """The reward whose values weigh or rank votes (`weighted`, `borda`), or judge each sample (`self_prm`)."""
    power: float = Field(default=0.5, ge=0)
    """`borda`: a rank's weight."""

    @model_validator(mode="after")
    def _votes(self) -> NamedEvaluationSection:
        where = f"evaluations '{self.name}'"
        if not self.vote and self.by:
            raise ValueError(f"{where}: by = '{self.by}' weighs votes, and there is no vote. Add vote = \"borda\".")
        if self.vote and self.samples < 2:
            raise ValueError(f"{where}: a vote chooses among samples of a task. Add samples = 8 or so.")
        if self.vote == "majority" and self.by:
            raise ValueError(f"{where}: vote = 'majority' counts every sample once. Leave out by.")
        if self.vote not in ("", "majority") and not self.by:
            raise ValueError(f"{where}: vote = '{self.vote}' wants by = NAME, a reward.")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{where}: samples = {self.samples} at temperature 0 are one sample several times.")
        names = [named(reward) for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"{where}: its rewards have the names {', '.join(names)}; give each its own.")
        return self

    @property
    def sampling_temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else 1.0

    def due(self, step: int) -> bool:
        """Whether the weights of a step within the run are evaluated."""
        return self.every_steps > 0 and step % self.every_steps == 0

    def graded_by(self, evaluation: EvaluationSection, recipe: Iterable[RewardSection]) -> str:
        """Name of the reward whose mean is the accuracy."""
        own = next((named(reward) for reward in self.rewards if named(reward) != self.by), "")
        return self.reward or own or evaluation.reward or named(next(iter(recipe)))

    def asked(self, evaluation: EvaluationSection, recipe: Iterable[RewardSection]) -> tuple[RewardSection, ...]:
        """The rewards that it asks: the one that grades, and the one that votes go by if there is one.

        Raises ValueError for a name that neither it nor the recipe has.
        """
        recipe = tuple(recipe)
        known = {named(reward): reward for reward in (*recipe, *self.rewards)}
        grades = self.graded_by(evaluation, recipe)
        wanted = dict.fromkeys((grades, self.by) if self.by else (grades,))
        for name in wanted:
            if name not in known:
                raise ValueError(
                    f"evaluations '{self.name}': '{name}' is none of its rewards and none of the recipe's. "
                    f"There are: {', '.join(known)}."
                )
        return tuple(known[name] for name in wanted)


def named(reward: RewardSection) -> str:
    """The name that a reward has in metrics and records."""
    return reward.name or reward.use.rsplit(":", 1)[-1]


def check_evaluations(
    sections: Iterable[NamedEvaluationSection], evaluation: EvaluationSection, recipe: Iterable[RewardSection]
) -> None:
    """Raises ValueError for a name that is there twice, and for rewards that there are not."""
    recipe, names = tuple(recipe), set()
    for section in sections:
        if section.name in names:
            raise ValueError(f"two [[evaluations]] have the name '{section.name}'; give each its own.")
        names.add(section.name)
        section.asked(evaluation, recipe)
