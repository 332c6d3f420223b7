"""Advantages from rewards of turns: OPRL's two levels and ExploRS, with the catalogue's numbers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from cluster.types import AssembledBatch, Turn
from learner.advantages.estimators import StepAdvantages
from learner.advantages.steps import EpisodeAndStep, ExploRS, count_bonus, shaping_update, turns_of
from tests.learner.groups import group, record_of, rollout, scored

RNG = np.random.default_rng(0)


def of_turns(*texts: tuple[str, ...], **fields):
    """Rollouts of turns `seen>said`, each of two tokens of prompt and three of the policy."""
    made = []
    for told in texts:
        turns = []
        for k, text in enumerate(told):
            seen, _, said = text.partition(">")
            turns += [Turn("user", 5 * k, 5 * k + 2, seen), Turn("assistant", 5 * k + 2, 5 * k + 5, said)]
        mask = np.tile([False, False, True, True, True], len(told))
        one = rollout(0, 5 * len(told), RNG, **fields)
        made.append(
            replace(one, turns=tuple(turns), loss_mask=mask, logprobs=np.where(mask, -0.1, 0).astype(np.float32))
        )
    return group(0, made)


def at_ends(*steps: tuple[float, ...]):
    return tuple(np.concatenate([[0, 0, 0, 0, r] for r in told]).astype(float) for told in steps)


# ── OPRL ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("episode", "size"), [("leave_one_out", 0.6666667), ("group", 0.8660254)])
def test_episodes_are_compared_as_the_catalogue_says(episode, size):
    groups = [scored(of_turns(*[("a>b",)] * 4), [1.0, 0.0, 0.0, 1.0])]
    (found,) = EpisodeAndStep(episode=episode, eps=0.0).advantages(groups)
    assert [float(a[0]) for a in found] == pytest.approx([size, -size, -size, size], abs=1e-6)


def test_turns_are_compared_over_all_turns_of_the_group():
    two = of_turns(("a>b", "c>d"), ("a>b",))
    tokens = at_ends((0.1, 0.3), (-0.1,))
    rewards = [1.0 + 0.4, 0.0 - 0.1]
    (found,) = EpisodeAndStep(eps=0.0).advantages([scored(two, rewards, tokens=tokens)])
    steps = np.array([0.1, 0.3, -0.1])
    standard = (steps - steps.mean()) / steps.std(ddof=1)
    whole = np.array([1, -1]) / np.sqrt(2)
    expected = [whole[0] + standard[0], whole[0] + standard[1], whole[1] + standard[2]]
    assert [found[0][2], found[0][7], found[1][4]] == pytest.approx(expected, abs=1e-9)
    assert found[0][:2].tolist() == [0, 0]


def test_a_policy_that_is_its_own_reference_has_the_episodes_advantage_alone():
    two = of_turns(("a>b", "c>d"), ("a>b",))
    (found,) = EpisodeAndStep(alpha=3.0).advantages([scored(two, [1.0, 0.0], tokens=at_ends((0, 0), (0,)))])
    (alone,) = EpisodeAndStep().advantages([scored(two, [1.0, 0.0])])
    assert found[0][2] == found[0][7] == alone[0][0]


def test_an_unknown_rollout_moves_no_baseline():
    three = of_turns(("a>b",), ("a>b",), ("a>b",))
    tokens = at_ends((0.1,), (-0.1,), (9.0,))
    (found,) = EpisodeAndStep().advantages([scored(three, [1.1, -0.1, np.nan], tokens=tokens)])
    (two,) = EpisodeAndStep().advantages([scored(of_turns(("a>b",), ("a>b",)), [1.1, -0.1], tokens=tokens[:2])])
    np.testing.assert_allclose(found[:2], two)
    assert np.isnan(found[2][2:]).all()


def test_a_chain_has_the_advantages_of_one_conversation():
    chain = [replace(r, episode=0, chained=True) for t in ("a>b", "c>d") for r in of_turns((t,)).rollouts]
    whole = of_turns(("a>b", "c>d"), ("a>b",))
    apart = replace(whole, rollouts=(*chain, whole.rollouts[1]))
    tokens = at_ends((0.1, 0.3), (-0.1,))
    estimator = StepAdvantages(EpisodeAndStep(), "oprl")
    one = estimator.of([scored(whole, [1.4, -0.1], tokens=tokens)], 1.0)[0]
    three = estimator.of([scored(apart, [1.1, 1.3, -0.1], tokens=at_ends((0.1,), (0.3,), (-0.1,)))], 1.0)[0]
    np.testing.assert_allclose(np.concatenate(three[:2]), one[0])


# ── ExploRS ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bonus_falls_with_the_count_and_has_a_cap():
    assert [count_bonus(n) for n in (0, 3, 8)] == pytest.approx([1, 0.5, 0.3333333], abs=1e-6)
    assert count_bonus(0, weight=5.0, most=2.0) == pytest.approx(2.0)


def test_shaping_moves_towards_an_action_that_gained():
    assert shaping_update(np.array([0.5, 0.5]), 0, 1.0, 0.01) == pytest.approx([0.0025, -0.0025], abs=1e-12)


def stepped(estimator, state, one, rewards):
    """The state after a step that trained on this group, as a checkpoint returns it."""
    rewards = np.asarray(rewards, np.float64)
    after = estimator.update(state, AssembledBatch(record_of([one], [rewards]), [one]))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(after))


def test_what_was_seen_often_pays_less():
    estimator, one = ExploRS(rate=0.0, normalize_std=False), of_turns(("a>b", "c>d"), ("a>e", "f>g"))
    state = estimator.init_state()
    (first,) = estimator.advantages([scored(one, [0.0, 0.0])], state)
    assert first[0] == pytest.approx(first[1]), "nothing is known of either"
    for _ in range(8):
        state = stepped(estimator, state, replace(one, rollouts=one.rollouts[:1]), [0.0])
    (later,) = estimator.advantages([scored(one, [0.0, 0.0])], state)
    # c and the end are seen eight times: 1/3 each; f never was: 1, and the end: 1/3.
    assert later[0][0] == pytest.approx(-1 / 3)
    assert later[1][0] == pytest.approx(1 / 3)


def test_what_is_learnt_is_in_the_checkpoint_and_a_repeated_step_is_equal():
    estimator, one = ExploRS(), of_turns(("a>b", "c>d"), ("a>e", "f>g"))
    state = stepped(estimator, estimator.init_state(), one, [1.0, 0.0])
    assert state == stepped(estimator, estimator.init_state(), one, [1.0, 0.0])
    (_, here, action, _, chance) = turns_of(one.rollouts[0])[0]
    other = turns_of(one.rollouts[1])[0][2]
    assert chance == pytest.approx(np.exp(-0.3), abs=1e-6)
    assert state["shaping"][here][action] > 0 > state["shaping"][here][other]
    assert estimator.metrics(state) == {"advantage/num_states": 3.0}


def test_tables_are_bounded_and_an_unknown_reward_teaches_nothing():
    estimator = ExploRS(max_states=2)
    state = stepped(estimator, estimator.init_state(), of_turns(("a>b", "c>d", "e>f", "g>h")), [1.0])
    assert all(len(table) == 2 for table in state.values())
    assert stepped(estimator, estimator.init_state(), of_turns(("a>b",)), [np.nan]) == estimator.init_state()
