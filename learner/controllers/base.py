"""What a controller is: it changes settings of the running job between steps. Pure; see `learner.memory`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cluster.plugins import Plugin

if TYPE_CHECKING:
    from learner.cut import Cut


class Controller(Plugin):
    """Base of controllers: `after` looks at a cut with its groups, `patch` says what holds from then on."""

    reads_scores: ClassVar[bool] = False
    """Whether it looks at `Cut.scores`, which a repeated step has to fetch."""

    def begin(self) -> Any:
        raise NotImplementedError

    def after(self, memory: Any, cut: Cut) -> Any:
        raise NotImplementedError

    def patch(self, memory: Any) -> dict[str, Any]:
        """Dotted key of the recipe → value."""
        raise NotImplementedError

    def told(self, memory: Any) -> dict[str, float]:
        """Metrics: what it sets, where that is a number."""
        patch = self.patch(memory)
        return {f"settings/{key}": float(v) for key, v in patch.items() if isinstance(v, int | float)}
