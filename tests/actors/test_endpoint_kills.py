"""Workers that serve agents, and the agents, are killed at random: no group is lost and none is trained twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from actors.environments.program import MARK
from cluster.buffer import Buffer, Limits
from cluster.types import Publication
from tests.actors import killed
from tests.cluster.pipeline import Pipeline

KILLS = 50
LIMITS = Limits(groups_per_step=2, max_staleness=2, lease_s=30)


class Learner(Pipeline):
    """Trains on whatever is ready, without weights."""

    def publish(self) -> None:
        self.engine = f"{self.epoch}.{self.step}"
        self.buffer.announce(Publication(self.policy, self.epoch, self.step, {"path": "none"}))

    def train(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            stored = self.ready(timeout_s=0.05)
            if len(stored) < LIMITS.groups_per_step:
                continue
            for one in stored:
                for rollout in one.group.rollouts:
                    assert rollout.text == "\n".join([killed.ANSWER] * 3)
            self.assemble()
            self.release()


def agents() -> list[int]:
    """Process ids of the programs of all episodes."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if f"{MARK}=".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


@pytest.mark.verify
def test_kills_at_random_lose_no_group_and_train_none_twice(buffer: Buffer):
    random.seed(0)
    learner = Learner(buffer, LIMITS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.actors.killed"])
    number, worker = 0, None
    before = set(agents())
    kills = {"worker": 0, "agent": 0}
    try:
        while sum(kills.values()) < KILLS:
            if worker is None:
                number += 1
                worker = context.Process(target=killed.work, args=(buffer, f"rollout-{number}"))
                worker.start()
            learner.train(random.uniform(0.5, 2.5))
            if random.random() < 0.4:
                os.kill(worker.pid or 0, signal.SIGKILL)
                worker.join()
                buffer.forsake("policy", f"rollout-{number}")
                worker = None
                kills["worker"] += 1
            elif running := [pid for pid in agents() if pid not in before]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(running), signal.SIGKILL)
                    kills["agent"] += 1
    finally:
        if worker is not None:
            worker.kill()
            worker.join()
    buffer.forsake("policy")
    learner.check_tasks()
    summary = buffer.summary("policy")
    assert (summary["groups_lost"], summary["groups_trained_twice"]) == (0, 0), summary
    assert min(kills.values()) >= 10, kills
    assert summary["groups_trained"] >= 10, summary
    until = time.monotonic() + 20
    while (left := set(agents()) - before) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
