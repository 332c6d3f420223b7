"""What every actor of a run is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.buffer import Buffer
from cluster.config import POLICY, RunConfig
from cluster.types import SkippedTasks


@dataclass(frozen=True)
class RunContext:
    """The recipe, and where the run keeps what."""

    config: RunConfig
    model_dir: str
    url: str
    """Redis, password included."""
    run_id: str
    run_dir: str
    others: Mapping[str, str] = field(default_factory=dict)
    """Model directories of the policies beside `policy`."""

    left_out: SkippedTasks = field(default_factory=SkippedTasks)
    """Rows that are no tasks of this run."""

    def model_of(self, policy: str) -> str:
        return self.others.get(policy, self.model_dir)

    def buffer(self) -> Buffer:
        return Buffer(
            self.url, self.run_id, self.config.run.progress_timeout_s
        )  # what waits longer ends the run anyway


def worker_name(run_id: str, name: str) -> str:
    """Under which Ray finds a rollout worker or a judge's replica."""
    return f"kanabo:{run_id}:{name}"


async def first_to_end(*tasks: asyncio.Future[Any]) -> None:
    """Wait until one of them ends; raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def learner_name(run_id: str, policy: str, rank: int) -> str:
    return f"kanabo:{run_id}:{policy}:learner:{rank}"


def rollout_role(policy: str) -> str:
    """Return the role of the workers that host a policy's engines."""
    return "rollout" if policy == POLICY else f"rollout:{policy}"


def policy_of(worker: str) -> str:
    """Return the policy whose engine a rollout worker hosts: `critic` of `rollout:critic-0`."""
    return worker.rpartition("-")[0].partition(":")[2] or POLICY
