"""What every actor of a run is told."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.buffer import Buffer
from cluster.config import RunConfig

POLICY = "policy"
"""Name of the one policy a run has so far."""


@dataclass(frozen=True)
class Site:
    """The recipe, and where the run keeps what."""

    config: RunConfig
    model_dir: str
    url: str
    """Redis, password included."""
    run_id: str
    run_dir: str

    def buffer(self) -> Buffer:
        return Buffer(self.url, self.run_id, self.config.run.stall_s)  # what waits longer ends the run anyway


def learner_name(run_id: str, rank: int) -> str:
    return f"kanabo:{run_id}:{POLICY}:learner:{rank}"
