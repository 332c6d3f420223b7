"""Follow-up likelihood: praise less complaint, as a scorer finds them behind a response (FLR, arXiv:2409.13948)."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from rewards.base import Services
from rewards.builtin.follow_up import FOLLOW_UPS, FollowUp, follow_up_reward
from rewards.scorers.pool import LogprobScorer
from tests.rewards.groups import group
from tests.rewards.scoring.stand_in import Given, of_logprobs

ONE = {"all": (("a", "b"), ("c", "d"))}
TOKENS = {"a": (-1.0, -2.0), "b": (-0.5, -1.5), "c": (-2.0, -4.0), "d": (-3.0,)}


def test_praise_less_complaint_and_a_constant_cancels():
    means = {text: float(np.mean(values)) for text, values in TOKENS.items()}
    assert follow_up_reward(means, ONE) == pytest.approx(1.75)
    assert follow_up_reward({t: m - 3.5 for t, m in means.items()}, ONE) == pytest.approx(1.75)
    two = {"first": (("a",), ("d",)), "second": (("b",), ("c",))}
    assert follow_up_reward(means, two) == pytest.approx((1.5 + 2.0) / 2)


async def test_the_scorer_reads_each_follow_up_as_the_users_next_message():
    asked = []

    def encode(messages):
        asked.append([(m.role, m.content) for m in messages])
        return [len(messages[1].content)], [ord(messages[2].content)] * len(TOKENS[messages[2].content])

    scorer = LogprobScorer("scorer", deadline_s=5)
    # Praise is likelier behind the longer response.
    read = Given(
        lambda p: of_logprobs([v + (int(p.prompt[0]) - 1) * (p.tokens[0] < 99) for v in TOKENS[chr(p.tokens[0])]])
    )
    scorer.set({"scorer:scorer-0": read})
    services = Services(scorers={"scorer": scorer}, encode=encode)
    scores = await FollowUp(follow_ups=ONE).score(group("x", "<think>no</think>yes"), services)
    services.close()
    assert scores.values == pytest.approx([1.75, 1.75 + 2])
    assert asked[4] == [("user", "47+38="), ("assistant", "yes"), ("user", "a")]
    assert len(asked) == 8


def test_every_dimension_has_both_sides_and_no_message_is_on_both():
    assert len(FOLLOW_UPS) == 6
    for praise, complaints in FOLLOW_UPS.values():
        assert praise
        assert complaints
        assert not set(praise) & set(complaints)


@pytest.mark.parametrize("sides", [((), ("no",)), (("yes",), (" ",))])
def test_a_dimension_with_an_empty_side_is_refused(sides):
    with pytest.raises(ValidationError, match=r"follow_ups\.all needs at least one message"):
        FollowUp(follow_ups={"all": sides})
