"""The driver's hold on the embedded server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from cluster import config
from cluster.buffer import Buffer
from cluster.buffer.server import Store
from cluster.driver import supervisor as supervise
from cluster.observability.metrics import Recorder
from cluster.workers import RunContext
from tests.cluster.disk import disk, kill

RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "quickstart.toml"


class Table:
    """A live table that shows nothing."""

    def state(self, what: str) -> None: ...

    def warning(self, what: str) -> None: ...


async def test_a_stop_ends_the_last_evaluation(tmp_path: Path, buffer: Buffer, monkeypatch: pytest.MonkeyPatch):
    begun = asyncio.Event()

    async def hangs(evaluation: object, step: int) -> None:
        begun.set()
        await asyncio.sleep(600)

    monkeypatch.setattr(supervise.Evaluation, "run", hangs)
    settings = config.load(str(RECIPE))
    context = RunContext(settings, "", buffer.__reduce__()[1][0], "run", str(tmp_path))
    recorder = Recorder(tmp_path / "metrics", settings.tracking, "run", {})
    supervisor = supervise.Supervisor(context, None, recorder, Table(), None)  # type: ignore[arg-type]
    supervisor._reached = 3
    evaluating = asyncio.create_task(supervisor._last_evaluation())
    await begun.wait()
    supervisor.ask_to_stop()
    async with asyncio.timeout(5):
        await evaluating
    assert "asked to stop" in supervisor._follower.evaluations_lost[3]


async def test_a_full_disk_costs_one_of_the_budget_however_long_it_lasts(
    tmp_path: Path, shim: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(supervise, "DISK_RETRY_S", 0.2)
    caplog.set_level(logging.WARNING)
    flag = tmp_path / "full"
    settings = config.load(str(RECIPE), ["run.max_infrastructure_failures=1"])
    with disk(shim, FULL_DISK=flag), Store(tmp_path / "redis") as store:
        context = RunContext(settings, "", store.url, "run", str(tmp_path))
        recorder = Recorder(tmp_path / "metrics", settings.tracking, "run", {})
        supervisor = supervise.Supervisor(context, store, recorder, None, None)  # type: ignore[arg-type]
        keeper = asyncio.create_task(supervisor._keep_store())
        flag.touch()
        kill(store)
        for _ in range(40):
            await asyncio.sleep(0.1)
            assert not keeper.done(), keeper.exception()
        assert sum("Free space" in record.getMessage() for record in caplog.records) >= 3
        assert "Free space" in supervisor._follower.waiting
        flag.unlink()
        for _ in range(100):
            await asyncio.sleep(0.1)
            if store.alive() and (await asyncio.to_thread(context.buffer().summary, "policy"))["groups_lost"] == 0:
                break
        assert store.alive()
        assert not keeper.done()
        keeper.cancel()
