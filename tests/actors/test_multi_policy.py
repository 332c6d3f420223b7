"""Groups that several policies make together, and how a claiming worker brings them about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from actors.environments.base import Observation
from actors.environments.comas import CoMas
from actors.environments.multi_policy import MultiPolicyEnvironment, Participants
from actors.multi_policy import MultiPolicySampler
from cluster.errors import DataError, InfrastructureError
from cluster.types import Claim, Rollout, Task

TASK = Task.of("sum/1", "2 + {solution}?")
CLAIM = Claim("policy/3/7", "policy", 3, 7, 11, 5, "secret")


def rollout(policy: str, text: str) -> Rollout:
    mask = np.array([False, True])
    return Rollout(np.zeros(2, np.int32), mask, np.zeros(2, np.float32), text, (), (), "stop", policy=policy)


class Heard:
    """Policies that say who they are, and what they were asked."""

    def __init__(self, *policies: str) -> None:
        self.prompts: list[str] = []
        self.versions: set[str] = set()
        self.progress = 0
        first, *others = policies
        self.sampler = MultiPolicySampler(
            first, self.player(first), {name: self.player(name) for name in others}, seed=0
        )

    def player(self, policy: str):
        async def play(task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
            self.prompts.append(task.prompt)
            self.versions.add(at_least)
            return tuple(rollout(policy, f"{policy} says {len(self.prompts)}") for _ in range(count))

        return play

    async def advance(self) -> None:
        self.progress += 1

    async def meet(self, meeting: MultiPolicyEnvironment, claim: Claim = CLAIM) -> tuple[Rollout, ...]:
        return await self.sampler.meet(meeting, claim, TASK, self.advance)


async def test_a_round_is_a_solution_its_evaluation_and_a_score():
    heard, meeting = (
        Heard("policy", "b"),
        CoMas(solve="S {discussion}|{question}", evaluate="E {solution}", score="J {solution} {evaluation}"),
    )
    found = await heard.meet(meeting)
    assert len(found) == meeting.size(2) == 12 == heard.progress, "m = 2l rounds"
    assert [r.variant for r in found] == ["solution", "evaluation", "score"] * 4
    assert [r.parent for r in found] == [None, 0, 1, None, 3, 4, None, 6, 7, None, 9, 10]
    said = [r.text for r in found]
    assert heard.prompts[1:3] == [f"E {said[0]}", f"J {said[0]} {said[1]}"]
    assert heard.prompts[0] == "S |2 + {solution}?", "what a question says is not filled in"
    last = heard.prompts[9]
    assert all(text in last for text in (*said[3:5], *said[6:8])), "a solution sees the last two exchanges"
    assert not any(text in last for text in (*said[:3], said[5]))
    assert heard.versions == {"3.5"}, "nobody speaks with older weights than the claim's"


async def test_speakers_are_drawn_evenly_and_again_the_same_for_the_same_task():
    heard = Heard("policy", "b", "c", "d")
    found = await heard.meet(CoMas(rounds=400, memory=0))
    drawn = Counter(r.policy for r in found)
    assert set(drawn) == {"policy", "b", "c", "d"}
    assert max(abs(count - 300) for count in drawn.values()) < 60
    again = await Heard("policy", "b", "c", "d").meet(CoMas(rounds=400, memory=0))
    assert [r.policy for r in again] == [r.policy for r in found]


async def test_without_memory_nothing_of_the_discussion_is_seen():
    heard = Heard("policy", "b")
    await heard.meet(CoMas(memory=0, solve="S{discussion}"))
    assert heard.prompts[::3] == ["S"] * 4


class Returns(MultiPolicyEnvironment):
    async def hold(self, task: Task, cast: Participants) -> Sequence[Rollout]:
        return [rollout("stranger", "hello")]


class Raises(MultiPolicyEnvironment):
    async def hold(self, task: Task, cast: Participants) -> Sequence[Rollout]:
        raise {"data": ValueError("no chair"), "engine": InfrastructureError("gone")}[WHAT[0]]


WHAT = ["data"]


async def test_a_meeting_that_fails_costs_its_group_and_an_engine_that_dies_the_worker():
    with pytest.raises(DataError, match="spoken in it"):
        await Heard("policy").meet(Returns())
    with pytest.raises(DataError, match="no chair"):
        await Heard("policy").meet(Raises())
    WHAT[0] = "engine"
    with pytest.raises(InfrastructureError, match="gone"):
        await Heard("policy").meet(Raises())


async def test_a_group_has_a_part_of_every_policy():
    heard = Heard("policy", "b", "c")
    parts = [await part for part in heard.sampler.elsewhere(CLAIM, TASK, 3)]
    assert [[r.policy for r in part] for part in parts] == [["b"] * 3, ["c"] * 3]
    assert heard.versions == {"3.5"}


async def test_a_held_out_question_is_put_to_a_policy_alone():
    said = [step async for step in CoMas().play(TASK, "orig")]
    assert said == [Observation(TASK.variants["orig"])]
