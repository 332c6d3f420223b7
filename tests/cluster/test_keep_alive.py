"""The driver's hold on the embedded server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from cluster import config
from cluster.buffer import Buffer
from cluster.buffer.server import Store
from cluster.driver import supervisor
from cluster.driver.evaluator import until
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

    monkeypatch.setattr(supervisor.Evaluation, "run", hangs)
    settings = config.load(str(RECIPE))
    context = RunContext(settings, "", buffer.__reduce__()[1][0], "run", str(tmp_path))
    recorder = Recorder(tmp_path / "metrics", settings.tracking, "run", {})
    driver = supervisor.Supervisor(context, None, recorder, Table(), None)  # type: ignore[arg-type]
    driver._reached = 3
    evaluating = asyncio.create_task(driver._last_evaluation())
    await begun.wait()
    driver.ask_to_stop()
    async with asyncio.timeout(5):
        await evaluating
    assert "asked to stop" in driver._follower.evaluations_lost[3]


async def test_a_full_disk_costs_one_of_the_budget_however_long_it_lasts(
    tmp_path: Path, shim: Path, drive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(supervisor, "DISK_RETRY_S", 0.2)
    caplog.set_level(logging.WARNING)
    flag = tmp_path / "full"
    with disk(shim, FULL_DISK=flag), Store(tmp_path / "redis") as store:
        driver = drive(store, store.url, max_infrastructure_failures=1)
        running = asyncio.create_task(driver.run())
        async with asyncio.timeout(40):
            await driver.trains.wait()
            flag.touch()
            kill(store)
            await until(lambda: sum("Free space" in record.getMessage() for record in caplog.records) >= 3)
            assert "Free space" in driver.supervisor.standing()["waiting"]
            flag.unlink()
            await until(store.alive)
            assert (await asyncio.to_thread(driver.buffer.summary, "policy"))["groups_lost"] == 0
            driver.supervisor.ask_to_stop()
            assert await running == 0
    assert driver.supervisor.standing()["failures"] == 1
