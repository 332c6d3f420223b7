"""Learners that train on the same groups: how they keep together at a checkpoint and at the end.

every policy   batch record ─► step ─► publish ─► release(by=itself)     the version is the slowest one's
a member       …  save its part ─► saved ─┐
who assembles  …  save its part ──────────┴─► all_saved ─► manifest    no manifest without everybody's weights
who assembles  leave(step) ─► members at that step have nothing more to wait for
"""

from __future__ import annotations

from cluster.buffer.client import Buffer


class Members:
    """The policies that train on the same batch records in one epoch. Calls of another epoch raise StaleEpoch."""

    def __init__(self, buffer: Buffer, policy: str, epoch: int) -> None:
        self._buffer, self._policy, self._epoch = buffer, policy, epoch

    def saved(self, member: str, step: int) -> None:
        """This member's part of the checkpoint of `step` is on disk."""
        self._buffer._call("saved", self._policy, self._epoch, step, member)

    def all_saved(self, step: int, *, timeout_s: float) -> bool:
        """Whether every member's part is; waits for them."""
        return self._buffer._call_when(timeout_s, "saved", self._policy, self._epoch, step, "")[0] == "ok"

    def leave(self, step: int) -> None:
        """No step from this one (counted from 0) on will be assembled."""
        self._buffer._call("leave", self._policy, self._epoch, step)

    def left_at(self) -> int | None:
        """What `leave` named, if it has been called."""
        found = self._buffer._call("left_at", self._policy, self._epoch)[1]
        return None if found is None else int(found)
