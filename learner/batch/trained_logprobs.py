"""What the learner itself gives the tokens it trains on, kept until the step is told: beside the engine's log-probs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cluster.config import LearnerSection
from cluster.types import BatchRecord, Group, MicroBatch
from learner.batch.pack import places_of


class Hindsight:
    """Log-probs of one step's tokens, before its update, of the micro-batches that this rank ran."""

    def __init__(self) -> None:
        self._micros: list[tuple[MicroBatch, Tensor]] = []

    def hear(self, micro: MicroBatch, logprobs: Float[Tensor, "B L"]) -> None:
        """Nothing is copied to the host yet: a GPU goes on with its work."""
        self._micros.append((micro, logprobs.detach()))

    def take(
        self, groups: Sequence[Group], record: BatchRecord, section: LearnerSection
    ) -> list[tuple[Float[np.ndarray, " T"], ...]]:
        """By group and rollout, in nats, float32; NaN for tokens not trained on, or by another rank. Forgets them."""
        found = [tuple(np.full(len(r.tokens), np.nan, np.float32) for r in group.rollouts) for group in groups]
        places = places_of(groups, record, section)
        for micro, logprobs in self._micros:
            row, column = np.nonzero(micro.loss_mask)
            values = logprobs.float().cpu().numpy()[row, column]
            numbers, positions = micro.rollout[row, column], micro.positions[row, column]
            for number in np.unique(numbers[numbers < len(places)]):  # replayed rollouts come behind
                g, i = places[number]
                mine = numbers == number
                found[g][i][positions[mine]] = values[mine]
        self._micros = []
        return found
