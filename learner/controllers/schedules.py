"""Settings that depend on the number of steps alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from learner.batch.experience_replay import cosine
from learner.controllers.base import Controller

if TYPE_CHECKING:
    from cluster.types import AssembledBatch


class Stepwise(Controller):
    """Remembers how many steps were taken."""

    def init_state(self) -> int:
        return 0

    def update(self, state: int, batch: AssembledBatch) -> int:
        return batch.record.step + 1


class Stages(Stepwise):
    """For `at` steps `first` holds, from then on `then`: staged training, such as SCoRe's (arXiv:2409.12917)."""

    at: PositiveInt
    """Steps that the first stage takes."""
    first: dict[str, Any] = {}
    """Dotted key, in quotes → value."""
    then: dict[str, Any] = Field(min_length=1)
    """Dotted key, in quotes → value, from step `at` on."""

    def patch(self, state: int) -> dict[str, Any]:
        return dict(self.then if state >= self.at else self.first)


class Cosine(Stepwise):
    """One number on half a cosine: end + (start − end) · (cos(π · min(step, S) / S) + 1) / 2.

    So SPEAR (arXiv:2509.22601, released code) lets its bonus for using tools fade, from 1 to 0.
    """

    key: str
    """Dotted key of the recipe whose number changes, such as `rewards.1.weight`."""
    start: float = 1.0
    """Value at step 0."""
    end: float = 0.0
    """Value from step S on."""
    steps: PositiveInt = 200
    """S: steps until the value is `end`."""

    def patch(self, state: int) -> dict[str, Any]:
        return {self.key: self.end + (self.start - self.end) * cosine(state, self.steps)}
