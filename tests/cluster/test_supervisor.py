"""What the driver does about workers that die, hang or fail, with stand-ins for the actors and a real buffer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from cluster.buffer.server import DiskFull
from cluster.driver import supervisor, watchdog
from cluster.errors import BudgetSpent, DataError, Stalled, StartFailed
from cluster.types import Publication
from tests.cluster.stand_ins import always, forever, raising

FAILED_CONSTRUCTOR = ActorDiedError(
    RayTaskError("RolloutActor.__init__", "Traceback:\nKeyError: 'no such name'", KeyError("no such name"))
)
MEMORY = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")


@pytest.mark.parametrize("death", [ActorDiedError(), MEMORY], ids=["killed", "out of memory"])
async def test_deaths_beyond_the_budget_end_the_run_and_the_last_is_named(drive, death):
    driver = drive(max_infrastructure_failures=1)
    driver.answers["rollout"] = {"run": raising(death)}
    with pytest.raises(BudgetSpent) as spent:
        await driver.run()
    said = "2 failures of infrastructure, run.max_infrastructure_failures = 1. The last: rollout-1 died: "
    assert str(spent.value).startswith(said + str(death).partition("\n")[0])
    assert driver.placed["rollout"] == 2


async def test_a_worker_whose_constructor_fails_ends_the_run_at_once_with_the_cause(drive):
    driver = drive()
    driver.answers["rollout"] = {"ready": raising(FAILED_CONSTRUCTOR)}
    with pytest.raises(StartFailed, match=r"^an actor could not be made: KeyError: 'no such name'$"):
        await driver.run()
    assert driver.placed["rollout"] == 1, "the next constructor would fail, too"


async def test_an_error_of_the_learner_that_would_repeat_ends_the_run_as_it_is(drive):
    driver = drive()
    driver.answers["learner"]["run"] = raising(DataError("the advantage is nan"))
    with pytest.raises(DataError, match=r"^the advantage is nan$"):
        await driver.run()
    assert driver.placed["learner"] == 1
    assert driver.supervisor.standing()["failures"] == 0


async def test_a_learner_that_dies_is_replaced_in_a_new_epoch(drive):
    driver = drive()

    async def die_then_finish(epoch: int, *asked: Any) -> int:
        driver.epochs.append(epoch)
        await asyncio.to_thread(driver.buffer.announce, Publication("policy", epoch, 0))
        if len(driver.epochs) == 1:
            raise ActorDiedError
        return 4

    driver.answers["learner"]["run"] = die_then_finish
    assert await driver.run() == 4
    assert driver.epochs == [1, 2]
    assert driver.supervisor.standing()["failures"] == 1


async def test_a_worker_that_stops_answering_is_killed_and_replaced(drive, monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "PING_S", 0.05)
    caplog.set_level(logging.WARNING)
    driver = drive(heartbeat_timeout_s=0.2)
    replaced = asyncio.Event()

    async def silent() -> None:
        driver.answers["reward"] = {"ready": joins}
        await forever()

    async def joins() -> None:
        replaced.set()

    async def train_until_replaced(epoch: int, *asked: Any) -> int:
        await asyncio.to_thread(driver.buffer.announce, Publication("policy", epoch, 0))
        await replaced.wait()
        return 3

    driver.answers["reward"] = {"waiting": silent}
    driver.answers["learner"]["run"] = train_until_replaced
    assert await driver.run() == 3
    assert "reward-0 has not answered for run.heartbeat_timeout_s = 0 s: killed" in caplog.text
    assert "reward-0 died (1 of 8)" in caplog.text
    assert driver.placed["reward"] == 2
    assert driver.supervisor.standing()["failures"] == 1


async def test_a_run_without_a_step_ends_with_what_every_actor_waits_for(drive, monkeypatch):
    monkeypatch.setattr(watchdog, "PING_S", 0.05)
    driver = drive(progress_timeout_s=1.5)
    driver.answers["rollout"] = {"waiting": always("samples 1 episodes, the oldest for 1 s")}
    driver.answers["reward"] = {"waiting": always("waits for groups to score")}
    driver.answers["learner"]["waiting"] = always("waits for the groups of step 1 for 1 s")
    with pytest.raises(Stalled) as stalled:
        await driver.run()
    assert "no step within run.progress_timeout_s = 1.5 s" in str(stalled.value)
    assert "\n  rollout-0 samples 1 episodes, the oldest for 1 s" in str(stalled.value)
    assert "\n  reward-0 waits for groups to score" in str(stalled.value)
    assert "\n  learner-0 waits for the groups of step 1 for 1 s" in str(stalled.value)
    assert "the buffer is at version 0: 0 groups are sampled, 0 wait for scores, 0 are ready" in str(stalled.value)


async def test_a_stop_that_the_learner_does_not_answer_ends_within_its_timeout(drive):
    driver = drive(shutdown_timeout_s=0.2)
    driver.answers["learner"] |= {"stop": forever, "waiting": always("takes step 3")}
    running = asyncio.create_task(driver.run())
    await asyncio.wait_for(driver.trains.wait(), 20)
    driver.supervisor.ask_to_stop()
    with pytest.raises(Stalled) as stalled:
        await running
    assert "the learner did not save its step within run.shutdown_timeout_s = 0.2 s" in str(stalled.value)
    assert "\n  learner-0 takes step 3" in str(stalled.value)
    assert "The next start continues from the first step." in str(stalled.value)


class FullDisk:
    """A redis-server that has died of a full disk."""

    pid = 0

    def alive(self) -> bool:
        return False

    def restart(self) -> None:
        raise DiskFull("No space left on device.")


async def test_a_stop_ends_the_wait_for_a_full_disk(drive, monkeypatch):
    waits = asyncio.Event()
    monkeypatch.setattr(supervisor.log, "warning", lambda said, *values: "Trying again" in said and waits.set())
    driver = drive(FullDisk())
    driver.answers["learner"]["stop"] = forever  # it cannot save the step that it has taken
    running = asyncio.create_task(driver.run())
    await asyncio.wait_for(waits.wait(), 20)
    driver.supervisor.ask_to_stop()
    with pytest.raises(Stalled, match=r"asked to stop while nothing can be saved: No space left on device\."):
        await running
