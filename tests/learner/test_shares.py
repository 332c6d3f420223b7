"""Groups of several policies: each is compared with itself alone and trained on what is its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import AssembledBatch, BatchRecord, Claim, Group, Rollout, Task
from learner.advantages.estimators import GroupAdvantage, ReinforcePlusPlus, StepAdvantages
from learner.advantages.multi_policy import AdvantagesByPolicy, OwnPart, owned, spread
from tests.learner.groups import scored

TOKENS = np.arange(4, dtype=np.int32)


def rollout(policy: str, text: str = "") -> Rollout:
    mask = np.array([False, False, True, True])
    return Rollout(TOKENS, mask, np.zeros(4, np.float32), text, (), (), "stop", policy=policy)


def group(seq: int, *policies: str) -> Group:
    claim = Claim(f"policy/1/{seq}", "policy", 1, seq, seq, 0, "")
    return Group(claim, Task.of(str(seq), "?"), tuple(rollout(p, f"{p}{i}") for i, p in enumerate(policies)))


MIXED = group(0, "b", "policy", "b", "policy", "b")
LONE = group(1, "policy", "policy")
REWARDS = (np.array([1.0, 0.0, 0.0, 4.0, np.nan]), np.array([2.0, 1.0]))


def advantages(estimator, policies=("policy", "b")):
    compared = AdvantagesByPolicy(estimator, "x", policies=policies) if policies else StepAdvantages(estimator, "x")
    return compared.of([scored(MIXED, REWARDS[0]), scored(LONE, REWARDS[1])], 1.0)


def test_a_policys_rollouts_are_compared_with_its_own_alone():
    first, second = advantages(GroupAdvantage(normalize_std=False))
    assert np.concatenate(first) == pytest.approx([0.5, -2, -0.5, 2, np.nan], nan_ok=True)
    assert np.concatenate(second) == pytest.approx([0.5, -0.5])
    together = advantages(GroupAdvantage(normalize_std=False), ())
    assert np.concatenate(together[0]) == pytest.approx([-0.25, -1.25, -1.25, 2.75, np.nan], nan_ok=True)


def test_a_whole_step_is_normalised_policy_by_policy():
    first, second = advantages(ReinforcePlusPlus())
    ours = np.array([0.0, 4.0, 2.0, 1.0])
    expected = (ours - ours.mean()) / ours.std(ddof=1)
    assert [first[1][0], first[3][0], second[0][0], second[1][0]] == pytest.approx(expected, abs=1e-5)
    assert [first[0][0], first[2][0]] == pytest.approx([2**-0.5, -(2**-0.5)], abs=1e-5)


def test_a_group_is_kept_for_the_one_policy_that_learns_from_it():
    equal, differ = scored(MIXED, [1.0, 3.0, 1.0, 3.0, 1.0]), scored(MIXED, [1.0, 3.0, 1.0, 3.0, 2.0])
    by_policy = AdvantagesByPolicy(GroupAdvantage(), "x", policies=("policy", "b"))
    assert by_policy.no_gradient(equal, 1.0), "each policy's own are all equal"
    assert not StepAdvantages(GroupAdvantage(), "x").no_gradient(equal, 1.0)
    assert not by_policy.no_gradient(differ, 1.0)


def test_each_learner_takes_its_own_part_of_the_record():
    weights = (tuple(np.full(4, i, np.float32) for i in range(5)), ())
    record = BatchRecord(
        "policy", 3, (MIXED.id, LONE.id), REWARDS, advantages(GroupAdvantage()), {"m": 1.0}, token_weights=weights
    )
    groups, ours = owned([MIXED, LONE], record, "b")
    assert [r.text for g in groups for r in g.rollouts] == ["b0", "b2", "b4"]
    assert ours.groups == tuple(g.id for g in groups) == (MIXED.id,)
    assert ours.rewards[0] == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert [w[0] for w in ours.token_weights[0]] == [0, 2, 4]
    groups, theirs = owned([MIXED, LONE], record, "policy")
    assert [len(g) for g in groups] == [2, 2]
    assert (theirs.step, theirs.token_weights[1]) == (3, ())
    parts = [owned([MIXED, LONE], record, name)[0] for name in ("policy", "b")]
    texts = sorted(r.text for part in parts for g in part for r in g.rollouts)
    assert texts == sorted(r.text for g in (MIXED, LONE) for r in g.rollouts), "every rollout is somebody's, once"
    assert owned([MIXED, LONE], record, "nobody")[0] == []


def test_what_a_part_is_told_finds_its_place_in_the_whole():
    groups = [LONE, MIXED]
    parts = [tuple(np.full(4, i, np.float32) for i in range(3))]
    lone, mixed = spread(groups, "b", parts)
    assert [v[0] for v in mixed] == pytest.approx([0, np.nan, 1, np.nan, 2], nan_ok=True)
    assert all(np.isnan(v).all() and len(v) == 4 for v in lone)


def test_a_learner_trains_on_its_own_part_of_every_batch():
    record = BatchRecord("policy", 3, (MIXED.id, LONE.id), REWARDS, advantages(GroupAdvantage()))
    batch = OwnPart("b").after_assemble(AssembledBatch(record, [MIXED, LONE], scores={"x": {}}))
    assert [r.text for g in batch.groups for r in g.rollouts] == ["b0", "b2", "b4"]
    assert batch.record.groups == (MIXED.id,)
    assert batch.scores == {"x": {}}


def test_a_rollout_of_nobody_is_no_silent_loss():
    stranger = replace(MIXED, rollouts=(*MIXED.rollouts, rollout("c")))
    with pytest.raises(KeyError):
        AdvantagesByPolicy(GroupAdvantage(), "x", policies=("policy", "b")).of([scored(stranger, np.zeros(6))], 1.0)
