"""A chain of rollouts is credited as the one conversation that it is, and left out as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import parse
from cluster.types import Event, Pair, Scores, Turn
from learner.advantages.chains import episodes_of, joined, one_rollout, unbroken
from learner.advantages.estimators import DrGrpo, StepAdvantages, TokenReturns, TokenRewards
from learner.advantages.registry import ADVANTAGES
from learner.batch.assemble import _selected
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.builtin.environment import EnvironmentReward
from tests.learner.groups import group, rollout, scored

NAN = float("nan")


def turns_of(*episodes: int, **fields):
    """A group of chains of so many rollouts, each of one turn: two tokens of prompt, three of the policy."""
    rng = np.random.default_rng(0)
    turns = (Turn("user", 0, 2, "?"), Turn("assistant", 2, 5, "!"))
    made = [
        replace(rollout(2, 3, rng, episode=number, chained=True, **fields), turns=turns)
        for number, length in enumerate(episodes)
        for _ in range(length)
    ]
    return group(0, made)


def as_one_conversation(chains):
    return replace(chains, rollouts=tuple(one_rollout([chains.rollouts[i] for i in at]) for at in episodes_of(chains)))


def at_ends(*rewards):
    return tuple(np.array([0.0, 0.0, 0.0, 0.0, r]) for r in rewards)


@pytest.mark.parametrize("discount", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", ["group", "dr_grpo", "rloo", "reinforce++", "token_returns", "token_rewards"])
def test_a_chain_is_credited_as_one_conversation_is(name, discount):
    chains, tokens = turns_of(3, 2, 1), at_ends(0.1, 0.2, 1.0, 0.3, 0.0, 0.5)
    rewards = [u.sum() + 0.25 for u in tokens]  # 0.25 for the episode as a whole
    together = as_one_conversation(chains)
    sums = [np.concatenate(tokens[:3]), np.concatenate(tokens[3:5]), tokens[5]]
    expected = StepAdvantages(ADVANTAGES[name](), name).of(
        [scored(together, [u.sum() + 0.25 for u in sums], tokens=tuple(sums))], discount
    )
    found = StepAdvantages(ADVANTAGES[name](), name).of([scored(chains, rewards, tokens=tokens)], discount)
    for at, whole in zip(episodes_of(chains), expected[0], strict=True):
        parts = [found[0][i] for i in at]
        if len(whole) == 1:
            assert all(part == whole for part in parts)
        else:
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_reward_in_a_later_rollout_counts_for_the_turns_before_it():
    chains, tokens = turns_of(2, 2), at_ends(0.0, 1.0, 0.0, 0.0)
    found = StepAdvantages(DrGrpo(), "dr_grpo").of([scored(chains, [0, 1, 0, 0], tokens=tokens)], 0.5)[0]
    assert [float(v[2]) for v in found] == pytest.approx([0.25, 0.5, -0.25, -0.5])


def test_what_an_episode_is_worth_does_not_grow_with_its_rollouts():
    found = StepAdvantages(DrGrpo(), "dr_grpo").of([scored(turns_of(5, 1), [1.0] * 5 + [0.0])], 1.0)[0]
    assert [float(v[0]) for v in found] == [0.5] * 5 + [-0.5]


def test_one_rollout_that_is_left_out_takes_its_chain_along():
    chains = turns_of(2, 2, 1)
    reward = scored(chains, [1.0, NAN, 0.0, 0.0, 1.0], pairs=(Pair(0, 2), Pair(4, 3))).reward
    assert reward is not None
    kept = unbroken(chains, reward)
    np.testing.assert_array_equal(kept.rewards, [NAN, NAN, 0.0, 0.0, 1.0])
    assert kept.pairs == (Pair(4, 3),)
    assert unbroken(chains, kept) is kept
    section = parse({}).learner
    (selected,) = _selected([chains], [{}], [reward], None, section)
    np.testing.assert_array_equal(selected.rewards, kept.rewards)


def test_a_group_whose_chains_return_alike_has_no_gradient_however_long_they_are():
    estimator = StepAdvantages(DrGrpo(), "dr_grpo")
    assert estimator.no_gradient(scored(turns_of(3, 1), [1.0] * 4), 1.0)
    tokens = at_ends(0.5, 0.5, 1.0)
    assert estimator.no_gradient(scored(turns_of(2, 1), [0.5, 0.5, 1.0], tokens=tokens), 1.0)
    assert not estimator.no_gradient(scored(turns_of(2, 1), [0.5, 0.5, 1.0], tokens=tokens), 0.0)
    assert not StepAdvantages(TokenReturns(), "t").no_gradient(scored(turns_of(2, 1), [1.0, 1.0, 0.0]), 1.0)
    assert not StepAdvantages(TokenRewards(), "t").no_gradient(scored(turns_of(2, 1), [1.0, 1.0, 0.0]), 1.0)


async def test_the_environments_reward_of_a_chain_is_counted_once():
    chains = turns_of(3, 1, reward=1.0)
    events = [(Event("key", 0, reward=0.25),), (), (), ()]
    chains = replace(chains, rollouts=tuple(replace(r, events=e) for r, e in zip(chains.rollouts, events, strict=True)))
    scores = await EnvironmentReward().score(chains, Services())
    assert scores.tokens is not None
    assert [t.sum() for t in scores.tokens] == [0.25, 0.0, 0.75, 1.0]
    mixer = Mixer(parse({"rewards": [{"use": "environment"}]}).rewards, ["environment"], 1)
    whole, _ = joined(scored(chains, [0.0] * 4))
    whole, _ = joined(replace(whole, group=chains, reward=mixer(chains, {"environment": scores})))
    assert whole.rewards.tolist() == [1.0, 1.0]
    assert whole.reward is not None
    assert whole.reward.parts["environment"].tolist() == [1.0, 1.0]


async def test_a_reward_of_whole_rollouts_is_averaged_over_its_chain():
    mixer = Mixer(parse({"rewards": [{"use": "exact", "weight": 2.0}]}).rewards, ["exact"], 1)
    chains = turns_of(2, 1)
    whole, places = joined(replace(scored(chains, [0.0] * 3), reward=mixer(chains, {"exact": Scores.of([1, 0, 1])})))
    assert places == [[0, 1], [2]]
    assert whole.reward is not None
    assert whole.reward.parts["exact"].tolist() == whole.rewards.tolist() == [1.0, 2.0]


def test_events_and_turns_of_a_chain_are_counted_through():
    chains = turns_of(2)
    made = one_rollout([replace(r, events=(Event("seen", 0),)) for r in chains.rollouts])
    assert [(t.start, t.end) for t in made.turns] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert [e.turn for e in made.events] == [0, 1]
    assert len(made.tokens) == len(made.loss_mask) == len(made.logprobs) == 10
