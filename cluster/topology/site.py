"""What every actor of a run is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

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


def worker_name(run_id: str, name: str) -> str:
    """Under which Ray finds a rollout worker or a judge's replica."""
    return f"kanabo:{run_id}:{name}"


async def first_to_end(*tasks: asyncio.Future[Any]) -> None:
    """Wait until one of them ends; raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def learner_name(run_id: str, rank: int) -> str:
    return f"kanabo:{run_id}:{POLICY}:learner:{rank}"
