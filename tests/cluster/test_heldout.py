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
from cluster.errors import ConfigError
from cluster.process import disk
from rewards.aggregation.voting import GradedSample


class Pool:
    """Reward workers that die over some groups, and are replaced; one rollout worker."""

    def __init__(self, scores: list[float], deadly: set[int], rollouts_die: int = 0) -> None:
        self.scores, self.deadly, self.rollouts_die = scores, deadly, rollouts_die
        self.explained: set[str] = set()
        self.deaths: list[str] = []

    def named(self, role: str) -> dict:
        """The last that died is still listed: its death is noticed a moment later."""
        alive = SimpleNamespace(
            grade=SimpleNamespace(remote=self._grade),
            grade_named=SimpleNamespace(remote=self._grade_named),
            count=SimpleNamespace(remote=self._count),
        )
        dead = SimpleNamespace(**dict.fromkeys(("grade", "grade_named", "count"), SimpleNamespace(remote=_died)))
        return dict.fromkeys(self.deaths[-1:], dead) | {f"reward-{len(self.deaths)}": alive}

    def of(self, role: str) -> list:
        asked = SimpleNamespace(remote=lambda *how: "groups")
        return [SimpleNamespace(evaluate=asked, evaluate_named=asked)]

    async def _grade_named(self, place: int, groups: str, index: int | None = None):
        """Samples of two tasks by turns; the value is the place."""
        _, answers = await self._grade(groups, index)
        return [GradedSample(f"task{int(i) % 2}", self.scores[int(i)], "A", float(i)) for i in answers]

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
        self.named: dict[str, dict[str, float]] = {}
        self.named_lost: dict[str, str] = {}

    def evaluated(self, step, accuracy, agreement, seconds, policy) -> None:
        self.accuracy = accuracy

    def evaluation_lost(self, step, why) -> None:
        self.lost = why

    def evaluated_named(self, name, step, figures, seconds, policy) -> None:
        self.named[name] = figures

    def named_evaluation_lost(self, name, step, why) -> None:
        self.named_lost[name] = why


async def evaluated(pool: Pool, directory, recipe=None, step: int = 1) -> Told:
    told, recipe = Told(), {"evaluation": {"every_steps": 1}} if recipe is None else recipe
    evaluation = Evaluation(pool, None, told, config.parse(recipe), directory)  # type: ignore[arg-type]
    await evaluation.run(step, catch_up=False)
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
    await Evaluation(Pool([1.0], set()), None, told, config.parse({"evaluation": {"every_steps": 1}}), tmp_path).run(
        0, catch_up=False
    )  # type: ignore[arg-type]
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


NAMED = {
    "evaluations": [
        {"name": "often", "every_steps": 2, "samples": 2, "vote": "borda", "by": "exact", "power": 1},
        {"name": "greedy", "every_steps": 3},
        {"name": "never"},
    ]
}


@pytest.mark.parametrize(("step", "due"), [(2, {"often"}), (3, {"greedy"}), (6, {"often", "greedy"}), (5, set())])
async def test_every_evaluation_has_steps_of_its_own(tmp_path, step, due):
    told = await evaluated(Pool([1.0] * 4, set()), tmp_path, NAMED, step)
    assert told.named.keys() == due
    assert math.isnan(told.accuracy), "[evaluation] has none in between"


async def test_a_vote_chooses_one_sample_of_each_task(tmp_path):
    """The later sample of each task has the larger value, and all answer the same: the first stands for them."""
    told = await evaluated(Pool([1.0, 0.0, 0.0, 0.0], set()), tmp_path, NAMED, 6)
    often = {"accuracy": 0.25, "pass_at_k": 0.5, "vote_accuracy": 0.5, "num_without_vote": 0.0}
    assert told.named == {"often": often, "greedy": {"accuracy": 0.25}}


async def test_self_prm_chooses_by_value_and_is_watched(tmp_path):
    section = {"name": "own", "every_steps": 1, "samples": 2, "vote": "self_prm", "by": "exact"}
    told = await evaluated(Pool([0.0, 0.0, 1.0, 0.0], set()), tmp_path, {"evaluations": [section]})
    assert told.named["own"]["vote_accuracy"] == 0.5
    assert told.named["own"]["verdict_precision"] == pytest.approx(1 / 3)
    assert told.named["own"]["verdict_recall"] == 1.0


async def test_a_named_evaluation_leaves_out_the_sample_that_ends_its_grader(tmp_path):
    pool = Pool([1.0, 0.0, 1.0, 0.0], {1})
    told = await evaluated(pool, tmp_path, NAMED, 3)
    assert told.named["greedy"] == {"accuracy": 0.5}, "of task1 one sample is left"
    assert pool.explained == set(pool.deaths)


async def test_a_named_evaluation_that_cannot_be_graded_says_so(tmp_path):
    told = await evaluated(Pool([math.nan] * 2, set()), tmp_path, NAMED, 3)
    assert told.named_lost == {"greedy": "no rollout could be scored"}
    assert told.named["greedy"] == {}
    told = await evaluated(Pool([1.0] * 8, set(range(8))), tmp_path, NAMED, 3)
    assert "workers died over 3 evaluation tasks" in told.named_lost["greedy"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"vote": "borda", "samples": 4}, "wants by = NAME"),
        ({"vote": "majority"}, "Add samples = 8"),
        ({"vote": "majority", "samples": 4, "by": "exact"}, "Leave out by"),
        ({"by": "exact"}, "there is no vote"),
        ({"samples": 4, "temperature": 0}, "one sample several times"),
        ({"reward": "exat"}, "'exat' is none of its rewards"),
        ({"rewards": [{"use": "judge"}]}, "asks the judge 'judge'"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_mistakes_in_a_named_evaluation_are_refused(section, words):
    with pytest.raises(ConfigError, match=words):
        config.parse({"evaluations": [{"name": "own"} | section]})


def test_two_evaluations_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"have the name .own."):
        config.parse({"evaluations": [{"name": "own"}, {"name": "own"}]})


def test_what_votes_go_by_does_not_grade():
    judge = {"kind": "keyword"}
    section = {"name": "own", "samples": 4, "vote": "self_prm", "by": "judge", "rewards": [{"use": "judge"}]}
    settings = config.parse({"judges": {"judge": judge}, "evaluations": [section]})
    asked = settings.evaluations[0].asked(settings.evaluation, settings.rewards)
    assert [reward.use for reward in asked] == ["exact", "judge"]
