"""A reward model that learns during the run, with its labeller, as a Ray actor."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import ray

from cluster.placement.groups import options
from cluster.types.events import RewardModelReport
from cluster.workers.context import RunContext, first_to_end
from cluster.workers.judge import Judges
from rewards.learned.labeler import Asking

REPORT_S = 5.0


class RewardModelActor:
    """The trainer of `[reward_models.NAME]` and its labeller; a replacement continues from the checkpoint."""

    def __init__(self, context: RunContext, name: str) -> None:
        from rewards.learned.factory import parts

        config, self._name = context.config, name
        self._model = model_of_worker(name)
        judge = config.reward_models[self._model].judge
        self._judges = Judges(context)
        self._judge = self._judges.pools[judge] if judge else None
        self._buffer = context.buffer()
        self._trainer, self._labeller = parts(
            self._model,
            config,
            context.url,
            context.run_id,
            Path(context.run_dir) / "reward_models",
            Asking(self._judge, config.judges[judge].max_in_flight) if self._judge else None,
            context.model_dir,
        )

    def ready(self) -> int:
        return os.getpid()

    async def run(self) -> None:
        """Label and learn until `stop`. Raises what the table, the disk and the buffer raise."""
        reports = asyncio.create_task(self._report())
        following = self._judges.follow()
        working = asyncio.gather(self._trainer.run(), self._labeller.run())
        try:
            await first_to_end(working, reports, *following)
        finally:
            for task in (working, reports, *following):
                task.cancel()
            for pool in self._judges.pools.values():
                await pool.close()

    async def stop(self) -> None:
        await self._labeller.stop()
        await self._trainer.stop()

    async def waiting(self) -> str:
        return self._trainer.waiting()

    async def close(self) -> None:
        await self.stop()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            own = await asyncio.to_thread(self._trainer.snapshot)
            asked = {f"reward_model/{self._model}_{key}": value for key, value in self._labeller.snapshot().items()}
            of_judge = self._judge.snapshot() if self._judge else {}
            report = RewardModelReport(worker=self._name, metrics={**own, **asked, **of_judge})
            await asyncio.to_thread(self._buffer.emit, report)


def model_of_worker(name: str) -> str:
    """`oni` of `reward_model:oni-0`."""
    return name.rpartition("-")[0].partition(":")[2]


def place_reward_model(context: RunContext, name: str) -> Any:
    where = options(context.config, context.run_id, name.rpartition("-")[0])
    return ray.remote(RewardModelActor).options(max_concurrency=1000, **where).remote(context, name)
