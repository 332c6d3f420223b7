"""A recipe that changes while it runs: what controllers say reaches mixer, selection, losses and rollouts.

controllers' memories ──► settings ──► the cut's record ──► losses and terms, on every rank
                             ├───────► mixer, selection      (rank 0)
                             └───────► the publication       ──► rollouts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.config import LearnerSection, RunConfig, patched
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import Group, GroupReward, Scores
from learner.advantages.estimators import ADVANTAGES
from learner.batch.experience_replay import REHEARSALS
from learner.controllers import CONTROLLERS
from learner.plugin_state import ADVANTAGE, REHEARSAL, PluginState
from learner.types import Mix, Select

Arrange = Callable[[RunConfig, PluginState], tuple[Mix, Select | None]]
STEERABLE = (
    "rollout.temperature", "rollout.max_tokens", "rollout.max_turns", "rollout.group_size",
    "rewards.", "selectors.", "learner.terms.",
    "learner.loss.options.", "learner.loss.kl_coef", "learner.loss.entropy_coef",
)  # fmt: skip
"""Keys, or beginnings of keys, that a controller may change."""


def memory_of(config: RunConfig, more: Mapping[str, Any]) -> PluginState:
    """The memories of what a recipe names, and of `more`. Raises ConfigError, also for settings that never hold."""
    section = config.learner
    plugins: dict[str, Any] = {
        ADVANTAGE: build(ADVANTAGES, section.advantage.use, section.advantage.options, "learner.advantage")
    }
    if section.rehearsal is not None:
        plugins[REHEARSAL] = build(REHEARSALS, section.rehearsal.use, section.rehearsal.options, "learner.rehearsal")
    for i, controller in enumerate(config.controllers):
        plugins[f"controllers.{i}"] = build(CONTROLLERS, controller.use, controller.options, f"controllers[{i}]")
    memory = PluginState({**plugins, **more})
    for key in memory.settings():
        if not key.startswith(STEERABLE):
            raise ConfigError(
                f"[[controllers]] set '{key}', which is decided once. Changeable: {', '.join(STEERABLE)}."
            )
    patched(config, memory.settings())
    return memory


def steered(section: LearnerSection, settings: Mapping[str, Any]) -> LearnerSection:
    """The section as controllers have changed it."""
    own = {key: value for key, value in settings.items() if key.startswith("learner.")}
    return patched(RunConfig(learner=section), own).learner if own else section


class Steering:
    """Mixer and selection of the recipe as it is now."""

    def __init__(self, config: RunConfig, arrange: Arrange, memory: PluginState) -> None:
        self._config, self._arrange, self._memory = config, arrange, memory
        self._settings: Mapping[str, Any] = {}
        self._mix, self._select = arrange(config, memory)
        memory.arrange = self._arranged

    def _arranged(self, settings: Mapping[str, Any]) -> tuple[Mix, Select | None]:
        return self._arrange(patched(self._config, {**self._memory.settings(), **settings}), self._memory)

    def _now(self) -> None:
        settings = self._memory.settings()
        if settings != self._settings:
            self._mix, self._select = self._arrange(patched(self._config, settings), self._memory)
            self._settings = settings

    def mix(self, groups: Sequence[Group], scores: Sequence[dict[str, Scores]]) -> list[GroupReward]:
        self._now()
        return self._mix(groups, scores)

    def select(
        self, groups: Sequence[Group], scores: Sequence[dict[str, Scores]], mixed: list[GroupReward]
    ) -> list[GroupReward]:
        self._now()
        assert self._select is not None, "a controller has taken the selectors away"
        return self._select(groups, scores, mixed)
