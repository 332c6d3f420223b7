"""What a controller is: it changes settings of the running job between steps. Pure; see `learner.plugin_state`."""

from __future__ import annotations

from typing import Any, ClassVar

from cluster.plugins import StatefulPlugin
from learner.types import Considered


class Controller(StatefulPlugin):
    """Base of controllers: `observe` and `update` look at a step, `patch` says what holds from then on."""

    reads_scores: ClassVar[bool] = False
    """Whether it looks at `AssembledBatch.scores`, which a repeated step has to fetch."""

    def observe(self, considered: Considered) -> Any:
        """Note what `update` needs of groups that the step may drop: plain values, kept in the step's record.

        `update` finds them in `batch.observed`, also when the step is repeated after a crash and the dropped groups
        are gone.
        """
        return None

    def patch(self, state: Any) -> dict[str, Any]:
        """Dotted key of the recipe → value."""
        raise NotImplementedError

    def metrics(self, state: Any) -> dict[str, float]:
        """Metrics: what it sets, where that is a number."""
        patch = self.patch(state)
        return {f"settings/{key}": float(v) for key, v in patch.items() if isinstance(v, int | float)}
