"""The learner's own log-probs of the tokens that it trains on, archived with their groups beside the engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cluster.config import LearnerSection
from cluster.storage.group_archive import GroupArchive
from cluster.types import AssembledBatch, BatchRecord, Group, MicroBatch, ScoredGroup
from learner.advantages.multi_policy import spread
from learner.pack import places_of
from learner.step_plugin import StepPlugin


class TrainedLogprobs(StepPlugin):
    """Log-probs of one step's tokens, before its update, of the micro-batches that this rank ran."""

    def __init__(self) -> None:
        self._micros: list[tuple[MicroBatch, Tensor]] = []

    def on_logprobs(self, micro: MicroBatch, logprobs: Float[Tensor, "B L"]) -> None:
        """Nothing is copied to the host yet: a GPU goes on with its work."""
        self._micros.append((micro, logprobs.detach()))

    def take(
        self, groups: Sequence[Group], record: BatchRecord, section: LearnerSection
    ) -> list[tuple[Float[np.ndarray, " T"], ...]]:
        """Return and forget them by group and rollout, nats; NaN for tokens not trained on, or on another rank."""
        found = [tuple(np.full(len(r.tokens), np.nan, np.float32) for r in group.rollouts) for group in groups]
        places = places_of(groups, record, section)
        for micro, logprobs in self._micros:
            row, column = np.nonzero(micro.loss_mask)
            if not len(row):  # a micro-batch that only keeps this rank beside the others
                continue
            values = logprobs.float().cpu().numpy()[row, column]
            numbers, positions = micro.rollout[row, column], micro.positions[row, column]
            order = np.argsort(numbers, kind="stable")
            present, starts = np.unique(numbers[order], return_index=True)
            for number, mine in zip(present, np.split(order, starts[1:]), strict=True):
                if number < len(places):  # replayed rollouts come behind
                    g, i = places[number]
                    found[g][i][positions[mine]] = values[mine]
        self._micros = []
        return found


class ArchiveGroups(TrainedLogprobs):
    """Write each trained group, its scores and its log-probs into the run directory, on rank 0."""

    def __init__(
        self,
        archive: GroupArchive,
        stored: Callable[[Sequence[str]], Sequence[ScoredGroup]],
        section: LearnerSection,
        policy: str = "",
    ) -> None:
        """`stored` returns groups of the buffer by id. `policy` is whose rollouts this learner trains on, if not all.

        It stands before the plug-in that leaves a policy its own part: whole groups are archived.
        """
        super().__init__()
        self._archive, self._stored, self._section, self._policy = archive, stored, section, policy
        self._batch: AssembledBatch | None = None

    def after_assemble(self, batch: AssembledBatch) -> AssembledBatch:
        self._batch = batch
        return batch

    def after_release(self, done: int, batch: AssembledBatch) -> None:
        whole = self._batch
        assert whole is not None
        # A batch that is repeated after a crash knows rewards alone; its scores are still stored.
        scores = whole.scores or {s.group.id: s.scores for s in self._stored(whole.record.groups)}
        logprobs = self.take(batch.groups, batch.record, self._section)
        if self._policy:
            logprobs = spread(whole.groups, self._policy, logprobs)
        self._archive.add(done, whole.groups, whole.record, scores, logprobs)

    def finish(self, done: int) -> None:
        self._archive.finish()
