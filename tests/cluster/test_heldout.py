"""An evaluation whose reward ends its worker: the guilty evaluation group is left out, the others are graded."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from cluster import config
from cluster.driver.evaluator import Evaluation
from cluster.process import disk


class Pool:
    """Reward workers that die over some groups, and are replaced; one rollout worker."""

    def __init__(self, scores: list[float], deadly: set[int], rollouts_die: int = 0) -> None:
        self.scores, self.deadly, self.rollouts_die = scores, deadly, rollouts_die
        self.explained: set[str] = set()
        self.deaths: list[str] = []

    def named(self, role: str) -> dict:
        """The last that died is still listed: its death is noticed a moment later."""
        alive = SimpleNamespace(grade=SimpleNamespace(remote=self._grade), count=SimpleNamespace(remote=self._count))
        dead = SimpleNamespace(grade=SimpleNamespace(remote=_died), count=SimpleNamespace(remote=_died))
        return dict.fromkeys(self.deaths[-1:], dead) | {f"reward-{len(self.deaths)}": alive}

    def of(self, role: str) -> list:
        return [SimpleNamespace(evaluate=SimpleNamespace(remote=lambda *how: "groups"))]

    async def _grade(self, groups: str, index: int | None = None):
        which = range(len(self.scores)) if index is None else [index]
        if self.deadly & set(which):
            self.deaths.append(f"reward-{len(self.deaths)}")
            raise ActorDiedError()
        return [self.scores[i] for i in which], {str(i): ("", 0.0) for i in which}

    async def _count(self, groups: str) -> int:
        return len(self.scores)


async def _died(*_):
    raise ActorDiedError()


class Told:
    """What the follower is told."""

    def __init__(self) -> None:
        self.accuracy, self.lost = math.nan, ""

    def evaluated(self, step, accuracy, agreement, seconds, policy) -> None:
        self.accuracy = accuracy

    def evaluation_lost(self, step, why) -> None:
        self.lost = why


async def evaluated(pool: Pool, directory) -> Told:
    told = Told()
    await Evaluation(pool, None, told, config.parse({}), directory).run(1, catch_up=False)  # type: ignore[arg-type]
    return told


async def test_anchors_wait_for_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "RETRY_S", 0.0)
    writes, replace = [], Path.replace

    def refused(path, target):
        writes.append(path)
        if len(writes) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    told = Told()
    await Evaluation(Pool([1.0], set()), None, told, config.parse({}), tmp_path).run(0, catch_up=False)  # type: ignore[arg-type]
    assert len(writes) == 3
    assert told.accuracy == 1.0
    assert "anchors.json cannot be written" in told.waiting


async def test_anchors_that_cannot_be_read_are_none(tmp_path):
    (tmp_path / "anchors.json").write_text('{"0": ["')
    assert (await evaluated(Pool([1.0], set()), tmp_path)).accuracy == 1.0


async def test_nothing_dies_and_one_call_grades_all(tmp_path):
    pool = Pool([1.0, 0.0, 0.5], set())
    assert (await evaluated(pool, tmp_path)).accuracy == 0.5
    assert not pool.deaths


@pytest.mark.parametrize("deadly", [{0}, {2}, {1, 3}])
async def test_a_held_out_group_that_ends_its_grader_is_left_out_and_explains_the_deaths(tmp_path, deadly):
    pool = Pool([1.0, 0.0, 1.0, 0.0], deadly)
    told = await evaluated(pool, tmp_path)
    healthy = [score for i, score in enumerate(pool.scores) if i not in deadly]
    assert told.accuracy == sum(healthy) / len(healthy)
    assert not told.lost
    assert len(pool.deaths) == len(deadly) + 1
    assert pool.explained == set(pool.deaths), "none costs the run's budget"


async def test_a_reward_that_dies_over_every_held_out_group_loses_the_evaluation_and_no_budget(tmp_path):
    pool = Pool([1.0] * 8, set(range(8)))
    told = await evaluated(pool, tmp_path)
    assert "workers died over 3 evaluation tasks" in told.lost
    assert len(pool.deaths) == 4
    assert pool.explained == set(pool.deaths)


async def test_one_death_that_no_group_explains_costs_the_budget(tmp_path):
    pool = Pool([1.0, 0.0], {0})
    grade = pool._grade

    async def once(groups, index=None):
        try:
            return await grade(groups, index)
        finally:
            pool.deadly = set()

    pool._grade = once
    assert (await evaluated(pool, tmp_path)).accuracy == 0.5
    assert pool.deaths == ["reward-0"]
    assert pool.explained == set()
