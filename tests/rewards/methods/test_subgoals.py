"""CALM (arXiv:2409.12798): sub-goals that a judge sees in transitions, with the catalogue's numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import ABSTAINED, FAILED, Event, Task
from rewards.base import Services
from rewards.builtin.subgoals import Subgoals, f1, pays, read_labels
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.errors import JudgeServerError
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Completion
from tests.rewards.learned.test_step_models import of, turns


def test_f1_of_labels():
    truth = {"a", "b", "c", "d", "e"}
    assert f1([({"a": True, "b": True, "c": True, "x": True}, truth)]) == pytest.approx(0.6666667, abs=1e-6)
    assert f1([({"a": False}, set())]) == 0.0


def test_a_subgoal_pays_once():
    assert pays([{"key": True}, {"key": True}, {"key": True}], ["key"]).tolist() == [1, 0, 0]
    assert pays([None, {"key": True, "door": True}, {"key": False, "door": True}], ["key", "door"]).tolist() == [
        0,
        2,
        0,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{'a': __import__('os')}", "{'a': 1}", "{'a': True, 'b': True}", "{}", "['a']", "{'a': True", "a", "",
        "{'a': " + "(" * 900 + ")" * 900 + "}", "{'a': 'True'}", "{['a']: True}", "{'a': " + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_what_is_no_dictionary_of_booleans_is_no_label(text):
    assert read_labels(f"```python\n{text}\n```", ["a"]) is None


def test_one_fence_behind_the_thoughts_is_read():
    good = "```python\n{'a': True}\n```"
    assert read_labels(f"<think>```\n{{'a': False}}\n```</think>So:\n{good}", ["a"]) == {"a": True}
    assert read_labels(good + good, ["a"]) is None
    assert read_labels("{'a': True}", ["a"]) is None


class Scripted(KeywordJudge):
    """Answers by the action that it is shown; an exception is raised."""

    def __init__(self, **answers) -> None:
        super().__init__()
        self._scripted = answers

    async def complete(self, call) -> Completion:
        action = call.messages[1].content.partition("Action at time 0: ")[2].split("\n")[0]
        answer = self._scripted[action]
        if isinstance(answer, Exception):
            raise answer
        return Completion(f"```\n{answer}\n```", "stop", "scripted", (), 1, 1, "1")


def services(judge) -> Services:
    return Services(judges={"judge": JudgePool("judge", [judge])})


def house(*rollouts):
    return replace(of(*rollouts), task=Task.of("t", "cook", subgoals=["key", "door"]))


def said(key, door):
    return str({"key": key, "door": door})


async def test_a_turn_is_paid_at_its_end_and_labels_are_compared_with_the_world():
    judge = Scripted(take=said(True, False), open=said(True, True), wait="nonsense")
    served = services(judge)
    same = turns("s0>take", "s1>wait", "s2>open", "s3>take", events=[Event("reached key", 0), Event("reached door", 2)])
    scores = await Subgoals().score(house(same, turns("s0>wait", "s1>wait")), served)
    assert scores.values.tolist() == [2.0, 0.0]
    assert scores.tokens is not None
    assert [scores.tokens[0][i] for i in (3, 7, 11, 15)] == [1, 0, 1, 0]
    logged = served.metrics()
    assert logged["reward/logged_subgoals_coverage"] == pytest.approx((0.75 + 0) / 2)
    # take, open and take again say key, key and door, key: two of four are what was reached
    assert logged["reward/logged_subgoals_f1"] == pytest.approx(2 * 2 / (4 + 2))
    served.close()


async def test_a_chain_is_one_episode():
    served = services(Scripted(take=said(True, False)))
    chain = [turns("s0>take", chained=True, episode=0) for _ in range(2)]
    scores = await Subgoals().score(house(*chain), served)
    assert scores.values.tolist() == [1.0, 0.0]
    served.close()


async def test_a_judge_that_is_away_is_no_zero():
    served = services(Scripted(take=JudgeServerError("gone"), wait=said(False, False)))
    scores = await Subgoals().score(house(turns("s0>take"), turns("s0>wait")), served)
    assert scores.state.tolist() == [FAILED, 0]
    assert np.isnan(scores.values[0])
    assert scores.provenance[0].note
    served.close()


async def test_a_task_without_subgoals_is_not_judged():
    served = services(Scripted())
    scores = await Subgoals().score(of(turns("a>b")), served)
    assert (scores.state == ABSTAINED).all()
    served.close()


async def test_the_keyword_judge_sees_what_is_held():
    served = services(KeywordJudge())
    one = turns("hall: key. held: none.>take key", "hall: none. held: key.>open door", "kitchen. held: key.>wait")
    scores = await Subgoals().score(house(one), served)
    assert scores.tokens is not None
    assert [scores.tokens[0][i] for i in (3, 7, 11)] == [1, 1, 0]
    served.close()
