"""Self-PRM: the share of steps that the policy calls correct, alone and beside a solution of its own (Self-REF)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import ABSTAINED, FAILED
from rewards.base import Services
from rewards.builtin.self_prm import SelfPrm, correct_frac
from rewards.judges.errors import JudgeUnavailable
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call, Completion
from tests.rewards.test_steps import GOOD_BAD, decode, of, rollout


class Solver:
    """Solves what it is asked as `solution`, and calls steps right that hold a word of it, or `good`."""

    name = "solver"

    def __init__(self, solution: str | None) -> None:
        self.solution, self.asked = solution, 0

    async def complete(self, call: Call) -> Completion:
        text = call.messages[-1].content
        if "STEP 1" not in text:
            self.asked += 1
            if self.solution is None:
                raise JudgeUnavailable("down")
            return Completion(self.solution, "stop", "solver", (), 1, 1, "1")
        steps = text.split("<<<STEP ")[1:]
        known = text.partition("<<<REFERENCE>>>\n")[2].partition("\n<<<END")[0] or "good"
        scores = ", ".join("9" if known in step.partition(">>>")[2] else "1" for step in steps)
        return Completion(f"I looked.\nScores: {scores}", "stop", "solver", (), 1, 1, "1")

    async def tokens(self, text: str) -> None:
        return None

    async def close(self) -> None:
        pass


async def scored(signal: SelfPrm, solver: Solver, *rollouts):
    services = Services(judges={"judge": JudgePool("judge", [solver], deadline_s=2)}, text=decode)
    await signal.prepare(services)
    scores = await signal.score(of(*rollouts), services)
    await services.close_judges()
    return scores


async def test_a_sample_is_worth_the_share_of_its_steps_that_are_called_correct():
    scores = await scored(SelfPrm(), Solver("unused"), rollout(*GOOD_BAD), rollout(7), rollout(6))
    assert scores.values == pytest.approx([2 / 3, 0.0, 1.0])


async def test_self_ref_solves_the_task_once_and_compares_every_sample_with_that():
    solver = Solver("bad")
    scores = await scored(SelfPrm(own_reference=True), solver, rollout(*GOOD_BAD), rollout(7))
    assert scores.values == pytest.approx([1 / 3, 1.0])
    assert solver.asked == 1
    assert SelfPrm(own_reference=True).version() != SelfPrm().version()


async def test_without_a_reference_solution_nothing_is_known():
    scores = await scored(SelfPrm(own_reference=True), Solver(None), rollout(6))
    assert scores.state.tolist() == [FAILED]
    assert "no reference solution" in scores.provenance[0].note


async def test_what_nobody_wrote_has_no_share():
    empty = replace(rollout(6), loss_mask=np.zeros(3, bool))
    scores = await scored(SelfPrm(), Solver("x"), empty)
    assert scores.state.tolist() == [ABSTAINED]
    assert np.isnan(correct_frac(np.array([np.nan])))
