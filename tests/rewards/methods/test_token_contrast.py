"""T-REG's token rewards (arXiv:2412.02685): the acceptance numbers, and what is read behind which prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import ABSTAINED, Message
from rewards.builtin.token_contrast import TokenContrast, token_contrast
from rewards.registry import REWARDS
from tests.rewards.groups import group
from tests.rewards.scoring.stand_in import of_logprobs, services_with


def test_the_contrast_of_two_prompts_to_the_digit():
    found = token_contrast(np.array([-1.0, -2.0]), np.array([-2.0, -1.0]))
    assert found == pytest.approx([0.231059, -0.231059], abs=1e-6)
    assert token_contrast(np.array([0.0, -800.0]), np.array([-800.0, 0.0])) == pytest.approx([0.5, -0.5])


def read(passage):
    values = [-1.0, -2.0, -1.0] if "is better" in passage.prompt[-1].content else [-2.0, -1.0, -1.5]
    return of_logprobs(values[: len(passage.tokens)])


async def test_a_response_is_read_behind_a_prompt_for_a_better_and_one_for_a_worse():
    variants = {"orig": (Message("system", "Be brief."), Message("user", "47+38={x}"))}
    made = group("abc", "xyz")
    made = replace(made, task=replace(made.task, variants=variants))
    services, replica = await services_with(read)
    reward = TokenContrast(better="{question} {response} is better", worse="{question} {response} is worse")
    scores = await reward.score(made, services)
    expected = [0, 0, 0.231059, -0.231059, 0.122459]
    assert [t.tolist() for t in scores.tokens or ()] == [pytest.approx(expected, abs=1e-6)] * 2
    assert scores.values == pytest.approx([0.122459] * 2, abs=1e-6)
    (asked,) = replica.asked
    assert len(asked) == 4, "one request, so one version of the weights"
    assert [p.prompt[0].content for p in asked] == ["Be brief."] * 4
    assert "47+38={x}" in asked[1].prompt[1].content
    assert "xyz" in asked[1].prompt[1].content
    assert [p.prompt[1].content.rpartition(" ")[2] for p in asked] == ["better", "better", "worse", "worse"]
    assert all(p.tokens.tolist() == [2, 3, 4] for p in asked), "the same token ids, whatever the prompt"


async def test_tokens_that_nobody_chose_have_no_credit_and_a_rollout_without_any_abstains():
    made = group("abc", "xyz")
    masks = [np.array([False, False, True, False, True]), np.zeros(5, bool)]
    made = replace(made, rollouts=tuple(replace(r, loss_mask=m) for r, m in zip(made.rollouts, masks, strict=True)))
    services, _ = await services_with(read)
    scores = await TokenContrast(better="{response} is better", worse="{response}").score(made, services)
    assert scores.tokens is not None
    assert scores.tokens[0].tolist() == pytest.approx([0, 0, 0.231059, 0, 0.122459], abs=1e-6)
    assert scores.tokens[1].tolist() == [0] * 5
    assert scores.state[1] == ABSTAINED


def test_a_prompt_with_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match=r"unknown field \{answer\}"):
        build(REWARDS, "token_contrast", {"better": "{answer}"}, "rewards[0]")
