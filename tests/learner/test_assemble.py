"""Cuts from the real buffer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.buffer import Buffer, Limits
from cluster.config import LearnerSection, LossSection, SequenceLossSection
from cluster.types import AssembledBatch, Group, GroupReward, Pair, Scores
from learner.advantages.estimators import Advantage, GroupAdvantage, ReinforcePlusPlus
from learner.batch import assemble as assembling
from learner.batch.assemble import wait_for_record
from tests.cluster.pipeline import Pipeline, group_of
from tests.learner.groups import each
from tests.learner.runs import assembler

POLICY = "policy"


def lap_of(buffer: Buffer, groups_per_step: int = 3, max_staleness: int = 1, **limits) -> Pipeline:
    return Pipeline(buffer, Limits(groups_per_step, max_staleness, **limits))


class Recipe:
    """A mixer that gives each task the rewards a test names, and remembers what it was asked."""

    def __init__(self, rewards: dict[int, list[float]] | None = None, drop: dict[int, str] | None = None) -> None:
        self.rewards, self.reasons, self.asked = rewards or {}, drop or {}, []

    def __call__(self, group: Group, scores: dict[str, Scores]) -> GroupReward:
        task = int(group.task.id)
        self.asked.append(task)
        rewards = np.array(self.rewards.get(task, [1.0, 0.0]))
        return GroupReward(rewards, self.reasons.get(task), {"reward/failed_scores": 1.0, "reward/share": float(task)})


def cut_of(
    pipeline: Pipeline,
    mix: Recipe,
    section: LearnerSection | None = None,
    advantage: Advantage | None = None,
    **options,
) -> AssembledBatch:
    section = section or LearnerSection(groups_per_step=pipeline.limits.groups_per_step)
    deciding = assembler(pipeline.buffer, pipeline.epoch, each(mix), advantage or GroupAdvantage(), **options)
    found = deciding.assemble(pipeline.step, section)
    assert found is not None
    return found


def tasks(found: AssembledBatch) -> list[int]:
    return [int(g.task.id) for g in found.groups]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembling, "POLL_S", 0.2)


def test_a_cut_holds_the_rewards_and_advantages_of_its_groups_in_order(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    found = cut_of(pipeline, Recipe({1: [0.0, 4.0]}))
    assert tasks(found) == [0, 1, 2]
    assert found.record.groups == tuple(g.id for g in found.groups)
    np.testing.assert_array_equal(found.record.rewards[1], [0.0, 4.0])
    credit = np.concatenate(found.record.advantages[1])
    np.testing.assert_allclose(credit, [-0.707107, 0.707107], atol=1e-5)
    assert found.record.metrics["reward/mean"] == pytest.approx((0.5 + 2.0 + 0.5) / 3)


def test_a_recorded_step_is_not_decided_again(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    first = cut_of(pipeline, Recipe())
    other_mind = Recipe({0: [0.0, 9.0]}, drop={1: "whim"})
    again = cut_of(pipeline, other_mind)
    assert other_mind.asked == []
    assert again.record.groups == first.record.groups
    np.testing.assert_array_equal(again.record.rewards[0], first.record.rewards[0])
    assert tasks(again) == tasks(first)


def test_another_rank_reads_the_same_groups_from_the_record(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    first = cut_of(pipeline, Recipe())
    other = wait_for_record(buffer, POLICY, 0, stop=lambda: False)
    assert other is not None
    assert other.record.groups == first.record.groups
    assert [g.id for g in other.groups] == [g.id for g in first.groups]


def test_useless_groups_are_dropped_with_their_reason_and_replaced(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()  # six groups are admitted, three are looked at
    nan = float("nan")
    found = cut_of(pipeline, Recipe({0: [1.0, 1.0], 2: [nan, nan]}, drop={1: "judge_offline"}))
    assert tasks(found) == [3, 4, 5]
    assert buffer.summary(POLICY)["groups_dropped"] == {"zero_variance": 1, "judge_offline": 1, "too_few_scores": 1}
    metrics = found.record.metrics
    assert metrics["buffer/num_dropped_zero_variance"] == 1
    assert metrics["reward/zero_variance_frac"] == pytest.approx(1 / 5)  # of those with a known reward


def test_rewards_of_dropped_groups_count_in_the_mean(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    found = cut_of(pipeline, Recipe({0: [1.0, 1.0]}))
    assert found.record.metrics["reward/mean"] == pytest.approx((1.0 + 3 * 0.5) / 4)


def test_after_max_refills_the_step_trains_on_what_is_there(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    mix = Recipe({task: [1.0, 1.0] for task in (0, 1, 3)})
    found = cut_of(pipeline, mix, LearnerSection(groups_per_step=3, max_refills=1))
    assert mix.asked == [0, 1, 2, 2, 3, 4]  # what is left is mixed together with what replaces the others
    assert tasks(found) == [2, 4]


def test_when_nothing_is_left_the_empty_cut_is_recorded_too(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    mix = Recipe({task: [0.0, 0.0] for task in range(100)})
    found = cut_of(pipeline, mix, LearnerSection(groups_per_step=3, max_refills=0))
    assert found.record.groups == ()
    again = cut_of(pipeline, Recipe())
    assert again.record.groups == ()
    pipeline.release()  # and the next step goes on
    pipeline.fill()
    assert len(cut_of(pipeline, Recipe()).groups) == 3


def test_zero_variance_groups_stay_where_the_recipe_says_so(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    section = LearnerSection(groups_per_step=3, drop_zero_variance=False)
    found = cut_of(pipeline, Recipe({0: [1.0, 1.0]}), section)
    assert tasks(found) == [0, 1, 2]
    assert np.concatenate(found.record.advantages[0]).tolist() == [0.0, 0.0]


def test_a_single_known_reward_has_no_gradient_and_goes(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    assert 0 not in tasks(cut_of(pipeline, Recipe({0: [1.0, float("nan")]})))


def put_with_truncated(pipeline: Pipeline, truncated: dict[int, list[bool]]) -> None:
    """Store a scored group for every claim, some rollouts of some tasks cut short."""
    for claim in pipeline.claim_all():
        found = group_of(claim)
        finishes = ["length" if t else "stop" for t in truncated.get(claim.task, [False, False, False])]
        rollouts = tuple(replace(found.rollouts[0], finish=finish) for finish in finishes)
        pipeline.buffer.put(replace(found, rollouts=rollouts))


def test_truncated_rollouts_move_the_baseline_unless_the_recipe_leaves_them_out(buffer):
    pipeline = lap_of(buffer, groups_per_step=1)
    put_with_truncated(pipeline, {0: [False, True, False]})
    mix = Recipe({0: [2.0, 9.0, 0.0]})
    section = LearnerSection(groups_per_step=1, drop_truncated=True)
    left_out = cut_of(pipeline, mix, section, GroupAdvantage(normalize_std=False)).record
    np.testing.assert_array_equal(left_out.rewards[0], [2.0, np.nan, 0.0])
    np.testing.assert_allclose(np.concatenate(left_out.advantages[0]), [1.0, np.nan, -1.0])
    assert left_out.metrics["reward/mean"] == pytest.approx(11 / 3), "what was sampled, not what is trained on"


def test_truncated_rollouts_count_by_default(buffer):
    pipeline = lap_of(buffer, groups_per_step=1)
    put_with_truncated(pipeline, {0: [False, True, False]})
    record = cut_of(pipeline, Recipe({0: [2.0, 9.0, 1.0]}), None, GroupAdvantage(normalize_std=False)).record
    np.testing.assert_allclose(np.concatenate(record.advantages[0]), [-2.0, 5.0, -3.0])


def test_groups_that_are_useless_without_their_truncated_rollouts_are_replaced(buffer):
    pipeline = lap_of(buffer, groups_per_step=2)
    put_with_truncated(pipeline, {0: [True, True, True], 1: [False, True, False]})
    mix = Recipe({0: [1.0, 0.0, 0.0], 1: [1.0, 0.0, 1.0], 2: [1.0, 0.0, 0.0], 3: [1.0, 0.0, 0.0]})
    found = cut_of(pipeline, mix, LearnerSection(groups_per_step=2, drop_truncated=True))
    assert tasks(found) == [2, 3]
    assert buffer.summary(POLICY)["groups_dropped"] == {"truncated": 1, "zero_variance": 1}


def test_an_advantage_may_look_at_the_whole_step(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    found = cut_of(pipeline, Recipe({0: [3.0, 1.0], 1: [0.0, 1.0], 2: [1.0, 0.0]}), None, ReinforcePlusPlus())
    credit = np.array([np.concatenate(a) for a in found.record.advantages])
    # mean 1, sample deviation sqrt(6 / 5)
    np.testing.assert_allclose(credit, np.array([[2, 0], [-1, 0], [0, -1]]) / np.sqrt(1.2), atol=1e-5)


def test_staleness_is_the_step_minus_the_version_of_each_group(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    cut_of(pipeline, Recipe())
    pipeline.release()
    metrics = cut_of(pipeline, Recipe()).record.metrics
    assert metrics["policy/staleness_steps"] == metrics["policy/staleness_max_steps"] == 1.0


def test_counts_of_the_mixer_are_added_up_and_its_shares_averaged(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    metrics = cut_of(pipeline, Recipe()).record.metrics
    assert metrics["reward/failed_scores"] == 3
    assert metrics["reward/share"] == 1.0


def test_a_learner_told_to_stop_while_waiting_records_nothing(buffer):
    pipeline = lap_of(buffer)
    asked = iter([False, True])
    section = LearnerSection(groups_per_step=3)
    deciding = assembler(buffer, pipeline.epoch, each(Recipe()), GroupAdvantage())
    stopped = deciding.assemble(0, section, stop=lambda: next(asked))
    assert stopped is None
    assert buffer.recorded(POLICY, 0) is None
    assert wait_for_record(buffer, POLICY, 0, stop=lambda: True) is None


def test_the_last_tasks_are_cut_without_waiting_for_more(buffer):
    pipeline = lap_of(buffer, num_tasks=2)
    pipeline.fill()
    assert tasks(cut_of(pipeline, Recipe())) == [0, 1]


class Pairing:
    """A selector: the best and the worst of each group, but none of the tasks in `without`."""

    def __init__(self, *without: int) -> None:
        self.without, self.asked = without, 0

    def __call__(self, groups, scores, mixed) -> list[GroupReward]:
        self.asked += 1
        pairs = [
            ()
            if int(g.task.id) in self.without
            else (Pair(int(np.nanargmax(m.rewards)), int(np.nanargmin(m.rewards)), label=0.75),)
            for g, m in zip(groups, mixed, strict=True)
        ]
        return [replace(m, pairs=p) for m, p in zip(mixed, pairs, strict=True)]


PAIRS_ALONE = LossSection(coef=0.0)
TERM = (SequenceLossSection(use="dpo"),)


def test_the_record_says_which_pairs_and_a_repeated_step_has_the_same(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    weights = (np.array([0.25, np.nan]),) * 2

    def select(groups, scores, mixed):
        return [replace(m, token_weights=weights) for m in Pairing()(groups, scores, mixed)]

    found = cut_of(pipeline, Recipe({1: [0.0, 4.0]}), select=select)
    assert found.record.pairs == ((Pair(0, 1, label=0.75),), (Pair(1, 0, label=0.75),), (Pair(0, 1, label=0.75),))
    assert found.record.metrics["pairs/num_pairs"] == 3
    assert found.record.metrics["pairs/label_mean"] == 0.75
    other_mind = Pairing(0, 1, 2)
    again = cut_of(pipeline, Recipe(), select=other_mind)
    assert other_mind.asked == 0
    assert again.record.pairs == found.record.pairs
    np.testing.assert_array_equal(again.record.token_weights[2][1], np.array([0.25, np.nan], np.float32))


def test_groups_without_a_pair_are_replaced_where_pairs_alone_are_trained_on(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    section = LearnerSection(groups_per_step=3, loss=PAIRS_ALONE, sequence_losses=TERM)
    found = cut_of(pipeline, Recipe({2: [1.0, 1.0]}), section, select=Pairing(0, 1))
    assert tasks(found) == [2, 3, 4], "equal rewards matter to nobody here"
    assert buffer.summary(POLICY)["groups_dropped"] == {"no_pairs": 2}


def test_beside_a_policy_loss_a_group_without_pairs_stays(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    found = cut_of(pipeline, Recipe({1: [1.0, 1.0], 2: [1.0, 1.0]}), select=Pairing(0, 1))
    assert tasks(found) == [0, 2, 3], "it goes only if nothing can be learnt from it at all"
    assert found.record.pairs[0] == ()
    assert len(found.record.pairs[1]) == 1, "equal rewards, but a pair"


def test_a_selector_sees_no_truncated_rollout_that_the_recipe_leaves_out(buffer):
    pipeline = lap_of(buffer, groups_per_step=1)
    put_with_truncated(pipeline, {0: [False, True, False]})
    section = LearnerSection(groups_per_step=1, drop_truncated=True)
    found = cut_of(pipeline, Recipe({0: [2.0, 9.0, 0.0]}), section, select=Pairing())
    assert found.record.pairs == ((Pair(0, 2, label=0.75),),)
    assert found.record.metrics["reward/mean"] == pytest.approx(11 / 3)


def test_what_a_selector_leaves_out_has_no_advantage(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()

    def best(groups, scores, mixed):
        return [replace(m, rewards=np.where(m.rewards == m.rewards.max(), m.rewards, np.nan)) for m in mixed]

    section = LearnerSection(groups_per_step=3, loss=PAIRS_ALONE, sequence_losses=(SequenceLossSection(use="nll"),))
    found = cut_of(pipeline, Recipe(), section, select=best)
    np.testing.assert_array_equal(found.record.rewards[0], [1.0, np.nan])
    assert found.record.pairs == ()


def test_a_mixer_sees_all_groups_of_the_round_together(buffer):
    pipeline = lap_of(buffer)
    pipeline.fill()
    rounds: list[list[int]] = []

    def mix(groups, scores) -> list[GroupReward]:
        """The round's first group is worth more."""
        rounds.append([int(g.task.id) for g in groups])
        worth = [
            np.array([1.0, 1.0]) if g.task.id == "1" else np.array([2.0 - (i > 0), 0]) for i, g in enumerate(groups)
        ]
        return [GroupReward(w) for w in worth]

    section = LearnerSection(groups_per_step=3)
    found = assembler(pipeline.buffer, pipeline.epoch, mix, GroupAdvantage()).assemble(0, section)
    assert found is not None
    assert rounds == [[0, 1, 2], [0, 2, 3]], "with what replaces a dropped group"
    assert [r[0] for r in found.record.rewards] == [2, 1, 1]
