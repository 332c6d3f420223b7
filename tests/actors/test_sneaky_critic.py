"""SPC (arXiv:2504.19162): a game in which one policy spoils steps and another finds the errors."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from actors.environments.multi_policy import Participants
from actors.environments.sneaky_critic import OPENING, SneakyCritic, critic_reward, is_valid, read_verdict
from cluster.errors import DataError
from cluster.types import Claim, Group, Rollout, Task, Turn
from cluster.types.wire import checked_group

TASK = Task.of("p", "What is 2 + 3 + 4?", "9", steps=["2 + 3 = 5", "5 + 4 = 9"])


def test_a_verdict_is_read_from_tags_and_pays_only_what_it_says():
    assert [read_verdict(t) for t in ("<Answer>Correct</Answer>", "no <answer>incorrect</answer>", "Correct")] == [
        True, False, None,
    ]  # fmt: skip
    rewards = [critic_reward(v, correct=c) for v in (True, False) for c in (True, False)]
    assert rewards == [1, -1, -1, 1]
    assert math.isnan(critic_reward(None, correct=True))


def test_an_error_is_valid_if_completions_say_so():
    assert is_valid(0.75, 0.0)
    assert not is_valid(0.5, 0.0), "the problem is too hard to tell"
    assert not is_valid(1.0, 0.25), "what was written is no error"


class Table:
    """Policies that say what they are told to, and what they were asked."""

    def __init__(self, *, verdict="Incorrect", spoilt="<Step>5 + 4 = 8</Step>", broken=True):
        self.verdict, self.spoilt, self.broken = verdict, spoilt, broken
        self.prompts = []

    async def speak(self, policy, prompt) -> Rollout:
        text = prompt[0].content
        self.prompts.append((policy, text))
        if text.startswith("You are given"):
            said = self.spoilt
        elif text.startswith("You check"):
            said = f"Hm. <Answer>{self.verdict}</Answer>" if self.verdict else "Hm."
        else:
            said = "the answer is 8" if self.broken and "= 8" in text else "so the answer is 9.0"
        turns = (Turn("user", 0, 1, text), Turn("assistant", 1, 2, said))
        return Rollout(
            np.zeros(2, np.int32), np.array([False, True]), np.zeros(2, np.float32), said, turns, (), "stop",
            policy=policy,
        )  # fmt: skip

    async def hold(self, task=TASK, **options):
        cast = Participants(("policy", "sneaky"), self.speak, Random(0))
        rollouts = await SneakyCritic(**options).hold(task, cast)
        return checked_group(Group(Claim("policy/1/0", "policy", 1, 0, 0, 0, "s"), task, tuple(rollouts))).rollouts


async def test_the_critic_s_gain_is_the_generator_s_loss():
    found = await Table().hold(rounds=4)
    assert [(r.agent, r.policy, r.reward, r.events[0].text) for r in found] == [
        ("sneaky", "sneaky", -1.0, "valid"),
        ("critic", "policy", 1.0, "error step"),
        ("critic", "policy", -1.0, "correct step"),
    ] * 2
    assert [r.parent for r in found] == [None, 0, None, None, 3, None]
    always = sum(r.reward for r in found if r.agent == "critic")
    assert always == 0, "a critic that always says Incorrect gains nothing"


async def test_a_text_without_a_verdict_is_left_out_on_both_sides():
    found = await Table(verdict="").hold(rounds=2)
    assert [math.isnan(r.reward) for r in found] == [True, True, True]


@pytest.mark.parametrize(
    ("options", "event"),
    [
        ({"broken": False}, "not valid"), ({"spoilt": "no tags"}, "no error"),
        ({"spoilt": "<Step> 5 + 4 = 9 </Step><Step>"}, "not valid"),
    ],
)  # fmt: skip
async def test_what_is_no_error_is_not_shown_to_the_critic(options, event):
    table = Table(**options)
    (only,) = await table.hold(rounds=1)
    assert only.agent == "sneaky"
    assert math.isnan(only.reward)
    assert only.events[0].text in (event, "no error")
    assert not any(text.startswith("You check") for _, text in table.prompts)


async def test_a_step_stands_behind_those_before_it():
    table = Table()
    await table.hold(rounds=40, completions=1)
    asked = [text for _, text in table.prompts if text.startswith("You check")]
    assert any(f"## Partial Solution\n{OPENING}\n\n## Last Step\n2 + 3 = 5" in text for text in asked)
    assert any("## Partial Solution\n2 + 3 = 5\n\n## Last Step\n5 + 4 = 9" in text for text in asked)


async def test_a_task_without_steps_is_a_fault_of_its_data():
    with pytest.raises(DataError, match="meta\\['steps'\\]"):
        await Table().hold(Task.of("p", "?", "9"))
