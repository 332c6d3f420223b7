"""A worker that is killed in the middle of a search: the group is claimed again, and its search starts again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time

from actors.environments.search import Critic, SearchEnvironment
from actors.environments.tree import ResponseTree
from actors.rollout import RolloutWorker
from actors.search import Found
from cluster.buffer import Buffer, Limits
from cluster.config import parse
from cluster.types import Publication, Task
from cluster.workers.critics import RewardCritics
from rewards.base import Services
from tests.actors.typist import Branching, Letters
from tests.cluster.pipeline import Pipeline

KILLS = 6
LIMITS = Limits(groups_per_step=2, max_staleness=2, lease_s=30)
TREE = ResponseTree(branching=2, depth=3, step_tokens=10, open_end=False)


class Slow(Branching):
    async def sample(self, prompt, **how):
        await asyncio.sleep(0.02)
        return await super().sample(prompt, **how)


def work(buffer: Buffer, name: str, environment: SearchEnvironment = TREE) -> None:
    """Claim, search and put until killed."""
    asyncio.run(working(buffer, name, environment).run())


def working(buffer: Buffer, name: str, environment: SearchEnvironment) -> RolloutWorker:
    publication = buffer.published("policy", timeout_s=10)
    assert publication is not None
    engine = Slow(seed=os.getpid())
    engine.version = publication.version
    settings = parse({"rollout": {"concurrent_groups": 2, "max_tokens": 64, "lease_s": 30}})

    async def update(publication, path) -> float:
        engine.version = publication.version
        return 0.0

    async def fetch(publication) -> str:
        return ""

    engine.update = update  # type: ignore[attr-defined]
    return RolloutWorker(
        name, policy="policy", engine=engine, chat=Letters(), environment=environment,  # type: ignore[arg-type]
        task_at=lambda i: Task.of(str(i), f"{i}?", "a"), buffer=buffer, config=settings, fetch=fetch,
        critics=RewardCritics(Services(threads=1)),
    )  # fmt: skip


class Learner(Pipeline):
    """Trains on whatever is ready, without weights; every group is a whole tree."""

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
                assert len(one.group) == 8
                assert len({node.id for r in one.group.rollouts for node in r.path}) == 14
            self.assemble()
            self.release()


def test_killed_searches_start_again_and_no_group_is_lost_or_trained_twice(buffer: Buffer):
    chance = random.Random(0)
    learner = Learner(buffer, LIMITS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.actors.test_search_kills"])
    worker = None
    try:
        for number in range(KILLS):
            worker = context.Process(target=work, args=(buffer, f"rollout-{number}"))
            worker.start()
            while buffer.status("policy")["groups"]["leased"] == 0:
                learner.train(0.05)
            learner.train(chance.uniform(0.1, 0.4))
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
            buffer.forsake("policy", f"rollout-{number}")
        worker = context.Process(target=work, args=(buffer, "rollout-last"))
        worker.start()
        learner.train(1.5)
    finally:
        if worker is not None:
            worker.kill()
            worker.join()
    buffer.forsake("policy")
    learner.check_tasks()
    summary = buffer.summary("policy")
    assert (summary["groups_lost"], summary["groups_trained_twice"]) == (0, 0), summary
    assert summary["groups_trained"] >= 4, summary


class ByExactness(SearchEnvironment):
    """Of ten one-letter answers, those that a reward of the run finds right."""

    critic: Critic = Critic(use="exact")

    async def search(self, task, tools):
        ends = await tools.extend(await tools.root(), 20, max_tokens=1)
        values = await tools.score(ends, self.critic)
        return [Found(e, reward=float(v)) for e, v in zip(ends, values, strict=True) if v > 0][: self.size]


async def test_a_worker_values_nodes_with_the_rewards_of_the_run(buffer: Buffer):
    learner = Learner(buffer, LIMITS)
    worker = working(buffer, "rollout-0", ByExactness(size=3))
    running = asyncio.create_task(worker.run())
    stored = []
    while len(stored) < 2:
        assert not running.done(), running
        stored = await asyncio.to_thread(learner.ready, timeout_s=0.2)
    await worker.stop()
    await running
    for one in stored:
        assert {(r.text, r.reward, r.policy) for r in one.group.rollouts} == {("a", 1.0, "policy")}
