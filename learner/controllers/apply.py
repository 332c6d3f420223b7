"""A recipe that changes while it runs: what controllers say reaches mixer, selection, losses and rollouts.

controllers' states ──► settings ──► the batch's record ──► losses and terms, on every rank
                            ├──────► mixer, selection       (rank 0)
                            └──────► the publication        ──► rollouts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.config import LearnerSection, RunConfig, patched
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import AssembledBatch, Group, GroupReward, Scores
from learner.advantages.registry import ADVANTAGES
from learner.batch.experience_replay import REPLAYS
from learner.controllers import CONTROLLERS
from learner.plugin_state import ADVANTAGE, EXPERIENCE_REPLAY, PluginState
from learner.step_plugin import StepPlugin
from learner.types import Mix, Select

Arrange = Callable[[RunConfig, PluginState], tuple[Mix, Select | None]]
STEERABLE = (
    "rollout.temperature", "rollout.max_tokens", "rollout.max_turns", "rollout.group_size",
    "rewards.", "selectors.", "learner.sequence_losses.",
    "learner.loss.options.", "learner.loss.kl_coef", "learner.loss.entropy_coef", "learner.loss.coef",
    "learner.demonstrations.coef",
)  # fmt: skip
"""Keys, or beginnings of keys, that a controller may change."""


def memory_of(config: RunConfig, more: Mapping[str, Any]) -> PluginState:
    """Return the state of a recipe's plug-ins and of `more`. Raises ConfigError, also for settings that never hold."""
    section = config.learner
    plugins: dict[str, Any] = {
        ADVANTAGE: build(ADVANTAGES, section.advantage.use, section.advantage.options, "learner.advantage")
    }
    if section.experience_replay is not None:
        plugins[EXPERIENCE_REPLAY] = build(
            REPLAYS, section.experience_replay.use, section.experience_replay.options, "learner.experience_replay"
        )
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
    """Return the section as controllers have changed it."""
    own = {key: value for key, value in settings.items() if key.startswith("learner.")}
    return patched(RunConfig(learner=section), own).learner if own else section


class Steering(StepPlugin):
    """Mixer, selection and objective as controllers have them now."""

    def __init__(self, config: RunConfig, arrange: Arrange, memory: PluginState) -> None:
        """`arrange` makes mixer and selection of a recipe, anew each time that controllers change it."""
        self._config, self._arrange, self._memory = config, arrange, memory
        self._settings: Mapping[str, Any] = {}
        self._mix, self._select = arrange(config, memory)

    def arranged(self, settings: Mapping[str, Any]) -> tuple[Mix, Select | None]:
        """Return mixer and selection as the recipe would have them with `settings` over the present ones."""
        return self._arrange(patched(self._config, {**self._memory.settings(), **settings}), self._memory)

    def configure(self, section: LearnerSection, batch: AssembledBatch) -> LearnerSection:
        return steered(section, batch.record.settings)

    def mix(self, groups: Sequence[Group], scores: Sequence[dict[str, Scores]]) -> list[GroupReward]:
        self._refresh()
        return self._mix(groups, scores)

    def select(
        self, groups: Sequence[Group], scores: Sequence[dict[str, Scores]], mixed: list[GroupReward]
    ) -> list[GroupReward]:
        self._refresh()
        assert self._select is not None, "a controller has taken the selectors away"
        return self._select(groups, scores, mixed)

    def _refresh(self) -> None:
        settings = self._memory.settings()
        if settings != self._settings:
            self._mix, self._select = self._arrange(patched(self._config, settings), self._memory)
            self._settings = settings
