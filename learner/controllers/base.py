"""What a controller is: it changes settings of the running job between steps. Pure; see `learner.plugin_state`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cluster.plugins import Plugin
from learner.types import Considered

if TYPE_CHECKING:
    from learner.types import AssembledBatch


class Controller(Plugin):
    """Base of controllers: `observe` and `after` look at a step, `patch` says what holds from then on."""

    reads_scores: ClassVar[bool] = False
    """Whether it looks at `AssembledBatch.scores`, which a repeated step has to fetch."""

    def observe(self, considered: Considered) -> Any:
        """Note what `after` needs of groups that the step may drop: plain values, kept in the step's record.

        `after` finds them in `cut.record.observed`, under the controller's name in the recipe (`name`), also when the
        step is repeated after a crash and the dropped groups are gone.
        """
        return None

    def begin(self) -> Any:
        raise NotImplementedError

    def after(self, memory: Any, cut: AssembledBatch) -> Any:
        raise NotImplementedError

    def patch(self, memory: Any) -> dict[str, Any]:
        """Dotted key of the recipe → value."""
        raise NotImplementedError

    def told(self, memory: Any) -> dict[str, float]:
        """Metrics: what it sets, where that is a number."""
        patch = self.patch(memory)
        return {f"settings/{key}": float(v) for key, v in patch.items() if isinstance(v, int | float)}
