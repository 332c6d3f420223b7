"""A bonus for what the environment noticed, such as the use of a tool."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from cluster.types import Group, Scores
from rewards.base import Reward, Services


class Events(Reward):
    """min(`most`, `each` · number of events named `event`).

    With `event = "call"` it is SPEAR's bonus for turns that use a tool (arXiv:2509.22601, released code), which fades:
    [[controllers]] use = "cosine", key = "rewards.1.weight".
    """

    event: str = Field(min_length=1)
    """Text of the event."""
    each: float = 0.1
    """Bonus per event."""
    most: PositiveFloat = 1.0
    """Upper bound of the bonus of one rollout."""

    async def score(self, group: Group, services: Services) -> Scores:
        counts = [sum(event.text == self.event for event in rollout.events) for rollout in group.rollouts]
        return Scores.of([min(self.most, self.each * count) for count in counts])
