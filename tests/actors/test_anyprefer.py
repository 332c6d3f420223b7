"""Anyprefer (arXiv:2504.19276): rounds of candidates, grades, an evaluator, and rewritten prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.environments.anyprefer import EVALUATE, JUDGE, Anyprefer, best_and_worst, read_score
from cluster.types import Task
from tests.actors.test_search import Ran
from tests.actors.typist import Branching

TASK = Task.of("q", "What is 2 + 2?", "4")


class Panel:
    """A judge that gives the next grades, an evaluator the next qualities, and a rewriter that numbers its prompts."""

    def __init__(self, grades, qualities=()):
        self.grades, self.qualities = iter(grades), iter(qualities)
        self.rewrites, self.asked = 0, []

    async def complete(self, judge, messages, n, max_tokens, temperature):
        self.asked.append((judge, messages))
        system = messages[0].content
        if system.startswith("You improve"):
            self.rewrites += 1
            return [f"Prompt {self.rewrites}."]
        quality = next(self.qualities) if judge == "evaluator" else next(self.grades)
        return [None if quality is None else f"Well. <score>{quality}</score>"]


async def held(panel, **options):
    return await Ran(Branching(ends=10), panel).group(Anyprefer(**options), TASK)


ROUND = [7, 9, 3, 9, 5]


async def test_the_first_of_the_best_and_of_the_worst_are_the_pair():
    assert best_and_worst([7, 9, 3, 9, 5]) == (1, 2)
    assert best_and_worst([4, 4, 4]) is None
    assert best_and_worst([4, math.nan, 2]) == (0, 2)
    assert best_and_worst([4, 2], floor=5) is None
    assert best_and_worst([math.nan, math.nan]) is None
    group = await held(Panel(ROUND, [9]))
    assert [r.reward for r in group.rollouts] == ROUND


async def test_a_pair_is_accepted_in_the_third_round_after_two_rewrites():
    panel = Panel(ROUND * 3, [5, 7, 8])
    group = await held(panel)
    assert [r.reward for r in group.rollouts] == ROUND
    assert panel.rewrites == 2 * 2, "of both prompts"
    shown = [r.turns[0].text for r in group.rollouts]
    assert all(text.startswith("Prompt 3.\nWhat is 2 + 2?") for text in shown), "they were sampled behind it"
    judged = [m[0].content for judge, m in panel.asked if judge == "judge"]
    assert judged == [JUDGE] * 5 + ["Prompt 2."] * 5 + ["Prompt 4."] * 5


async def test_a_task_without_an_accepted_pair_is_discarded():
    panel = Panel(ROUND * 3, [5, 7, 7])
    group = await held(panel)
    assert all(math.isnan(r.reward) for r in group.rollouts)
    assert panel.rewrites == 2 * 2


async def test_equal_or_unknown_grades_are_no_pair_and_no_evaluator_is_asked():
    panel = Panel([5] * 5 + [None] * 5)
    group = await held(panel, rounds=2)
    assert all(math.isnan(r.reward) for r in group.rollouts)
    assert all(messages[0].content != EVALUATE for _, messages in panel.asked)


def evidence(question: str, answer: str) -> str:
    return f"{question} has {len(answer)} letters of answer"


async def test_the_judge_sees_what_tools_say():
    panel = Panel(ROUND, [9])
    group = await held(panel, tools=("tests.actors.test_anyprefer:evidence",))
    bodies = [m[1].content for judge, m in panel.asked if judge == "judge"]
    assert all(f"has {len(r.text)} letters" in body for r, body in zip(group.rollouts, bodies, strict=True))


def test_grades_are_read_from_tags_and_within_their_scale():
    assert read_score("so <score>3</score> or <score> 7.5 </score>.") == 7.5
    assert [read_score(t) for t in ("7", "<score>11</score>", "<score>0</score>", None)] == pytest.approx(
        [np.nan] * 4, nan_ok=True
    )
