"""Rollouts whose prompt had opened a thought: rewards read the whole text, or what is said after the thought."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cluster.config import RewardSection
from cluster.types import Group, Rollout, Turn
from rewards.base import Services
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call
from rewards.registry import build_reward
from tests.rewards.groups import group

TAGS = [
    ("<think>\n", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>\n", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>\n\n", "<|end_of_thought|>"),
]
WORDS = {"code": "```python\nprint(85)\n```", "games": "[85]"}


@pytest.fixture
def services():
    made = Services(threads=1)
    yield made
    made.close()


def opened(text: str, tag: str, **fields) -> Rollout:
    rollout = group(text).rollouts[0]
    return replace(rollout, opened=tag, turns=tuple(replace(t, opened=tag) for t in rollout.turns), **fields)


def of(*rollouts: Rollout, answer: str = "85") -> Group:
    return replace(group(*(r.text for r in rollouts), answer=answer), rollouts=rollouts)


async def values(use: str, services: Services, made: Group, **options) -> list[float]:
    reward = build_reward(RewardSection(use=use, options=options), "rewards[0]")
    await reward.prepare(services)
    return (await reward.score(made, services)).values.tolist()


@pytest.mark.parametrize(("begin", "end"), TAGS)
@pytest.mark.parametrize("use", ["exact", "numeric", "math"])
async def test_an_answer_counts_behind_the_opened_thought_and_not_within_it(use, begin, end, services):
    texts = [f"maybe 3{end} \\boxed{{85}}", "\\boxed{85}", f"\\boxed{{85}}{end}\\boxed{{3}}", f"\\boxed{{85}}{end}"]
    assert await values(use, services, of(*(opened(t, begin) for t in texts))) == [1, 0, 0, 0]


@pytest.mark.parametrize(("begin", "end"), TAGS)
async def test_a_written_thought_is_known_by_every_tag(begin, end, services):
    texts = [f"{begin}3{end}85", f"{begin}85", f"{begin}a{end} 3 {begin}b{end} 85", f"{begin}a{end}{begin}85"]
    assert await values("exact", services, of(*(opened(t, "") for t in texts))) == [1, 0, 1, 0]


@pytest.mark.parametrize("nested", ["<reflection>no</reflection>", "[THINK]no[/THINK]", "<analysis>", "</analysis>"])
async def test_a_tag_of_another_kind_does_not_end_a_thought(nested, services):
    assert await values("exact", services, of(opened(f"hm {nested} 85", "<think>"))) == [0]


async def test_an_answer_before_a_reason_counts(services):
    made = of(opened("<answer>85</answer><reasoning>47 and 38</reasoning>", ""))
    assert await values("exact", services, made, extract="tag") == [1]


async def test_a_form_is_that_of_the_whole_text(services):
    whole = "a</think>\n<answer>85</answer>"
    made = of(opened(whole, "<think>\n"), opened(whole, ""), opened("a<think>" + whole, "<think>\n"))
    assert await values("format", services, made) == [1, 0, 0]
    assert await values("format", services, of(opened("85</answer>", "<answer>")), pattern="<answer>.*</answer>") == [1]


def turns(*said: tuple[str, str]) -> Rollout:
    """A rollout of turns (opened, text) with an observation between them."""
    made, at = [Turn("user", 0, 2, "go")], 2
    for tag, text in said:
        made += [Turn("assistant", at, at + 2, text, tag), Turn("user", at + 2, at + 3, "seen")]
        at += 3
    length = at - 1
    mask = np.array([i >= 2 and (i - 2) % 3 != 2 for i in range(length)])
    texts = "\n".join(text for _, text in said)
    rollout = replace(group(texts).rollouts[0], tokens=np.arange(length, dtype=np.int32), loss_mask=mask)
    return replace(rollout, logprobs=mask * -1.0, turns=tuple(made[:-1]), opened=said[0][0])


async def test_every_turn_begins_in_what_was_opened_for_it(services):
    cases = [
        (turns(("<think>", "3</think>look"), ("<think>", "4</think>85")), 1),
        (turns(("<think>", "3</think>look"), ("<think>", "85")), 0),
        (turns(("<think>", "3"), ("", "85")), 1),
        (turns(("", "<think>3</think>look"), ("<think>\n", "3</think>\\boxed{85}")), 1),
        (turns(("<think>", "\\boxed{85}"), ("<think>", "hm</think>none")), 0),
    ]
    assert await values("exact", services, of(*(r for r, _ in cases))) == [value for _, value in cases]


async def test_each_attempt_is_read_by_itself(services):
    made = of(
        turns(("<think>", "85"), ("<think>", "3</think>85")), turns(("<think>", "3</think>85"), ("<think>", "85"))
    )
    assert await values("attempts", services, made, value="first") == [0, 1]
    assert await values("attempts", services, made, value="last") == [1, 0]


async def test_a_program_within_a_thought_is_not_run(services):
    right, wrong = (f"```python\nprint({n})\n```" for n in (85, 3))
    made = of(
        opened(f"{wrong}</think>{right}", "<think>\n"),
        opened(f"{right}</think>{wrong}", "<think>\n"),
        opened(right, "<think>\n"),
        answer='{"inputs": [""], "outputs": ["85"]}',
    )
    assert await values("code", services, made) == [1, 0, 0]


class Seen(KeywordJudge):
    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    async def complete(self, call: Call):
        self.prompts.append(call.messages[-1].content)
        return await super().complete(call)


@pytest.mark.parametrize(("closed", "thoughts"), [*product([True, False], repeat=2)])
async def test_a_judge_is_shown_the_thought_only_where_the_option_says_so(closed, thoughts):
    judge = Seen()
    services = Services(judges={"judge": JudgePool("judge", [judge])})
    text = "secret</think>good" if closed else "secret"
    await values("judge", services, of(opened(text, "<think>\n")), thoughts=thoughts)
    services.close()
    assert ("secret" in judge.prompts[0]) == thoughts
    assert ("think>" in judge.prompts[0]) == thoughts  # whose tags may be written otherwise
    assert ("good" in judge.prompts[0]) == closed


FUNCTIONS = """
import re

def one(completion):
    return float(completion.startswith("<think>") and completion.count("<think>") == 1)

def texts(completions, **kwargs):
    return [one(c) for c in completions]

def conversation(completions, **kwargs):
    return [one(c[0]["content"]) for c in completions]
"""


@pytest.mark.parametrize(("name", "talks"), [("one", False), ("texts", False), ("conversation", True)])
async def test_plain_functions_are_given_the_whole_text(tmp_path, services, name, talks):
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    made = of(opened("a</think>b", "<think>\n"), opened("b", ""), opened("<think>a</think>b", ""))
    made = replace(made, task=replace(made.task, meta={"conversational": talks}))
    assert await values(f"{file}:{name}", services, made) == [1, 0, 1]
