"""The keyword judge answers whatever it is asked: a recipe whose reward has questions of its own can be tried out."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from cluster.types import Message
from rewards.base import Services
from rewards.judges.backends.keyword import KeywordJudge
from rewards.judges.pool.pool import JudgePool


@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("system", "user", "assistant", "user")])
async def test_a_question_that_is_of_no_template_is_answered_with_the_count(roles):
    services = Services(judges={"judge": JudgePool("judge", [KeywordJudge(["so"])])})
    messages = [Message(role, "Well, so so. How good is it?") for role in roles]
    try:
        [answer] = await services.complete("judge", messages)
    finally:
        await services.close_judges()
        services.close()
    assert answer.text == "I count 2."


def test_a_service_that_was_not_asked_for_is_told_apart_from_one_that_is_not_there():
    with pytest.raises(ConfigError, match=r"Add a section \[scorers\.first\], and 'scorer' to the `services`"):
        Services().scorer("first")
    with pytest.raises(ConfigError, match=r"Add a section \[reward_models\.mine\], and 'reward_model' to"):
        Services().reward_model("mine")
