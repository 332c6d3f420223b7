import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import CorrectionSection, LearnerSection, LossSection
from cluster.types import VersionSpan
from learner.losses.policy_losses import LOSSES, objective
from learner.pack import pack, tokens_of, without_overlong
from tests.learner.groups import VOCABULARY, bigram_logprobs, random_groups, random_rewards, record_of

LENGTHS = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=5), min_size=1, max_size=6
)


def unpacked(batches) -> dict[int, tuple]:
    """Rollout number → its columns, cut out of the rows of all ranks."""
    found = {}
    for batch in batches:
        for micro in batch.micros:
            for row in range(len(micro.tokens)):
                for number in np.unique(micro.rollout[row]):
                    if number >= 0:
                        assert number not in found, "a rollout lies in two places"
                        where = micro.rollout[row] == number
                        columns = (micro.positions, micro.tokens, micro.loss_mask, micro.logprobs, micro.advantages)
                        found[int(number)] = tuple(c[row][where] for c in columns)
    return found


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(4, 40), st.integers(8, 80), st.integers(1, 3))
def test_every_rollout_is_packed_once_and_whole(lengths, row_tokens, micro_tokens, world):
    groups = random_groups(lengths)
    record = record_of(groups, random_rewards(groups))
    section = LearnerSection(row_tokens=row_tokens, micro_tokens=micro_tokens)
    batches = [pack(groups, record, section, rank, world) for rank in range(world)]
    rollouts = [r for g in groups for r in g.rollouts]
    found = unpacked(batches)
    assert sorted(found) == list(range(len(rollouts)))
    credits = [a for advantages in record.advantages for a in advantages]
    for number, rollout in enumerate(rollouts):
        positions, tokens, mask, logprobs, advantages = found[number]
        np.testing.assert_array_equal(positions, np.arange(len(rollout.tokens)))
        np.testing.assert_array_equal(tokens, rollout.tokens)
        np.testing.assert_array_equal(mask, rollout.loss_mask)
        np.testing.assert_array_equal(logprobs, rollout.logprobs)
        np.testing.assert_array_equal(advantages[mask], np.repeat(credits[number], mask.sum()))
    assert len({len(b.micros) for b in batches}) == 1, "ranks run different numbers of micro-batches"
    assert sum(int(m.loss_mask.sum()) for b in batches for m in b.micros) == batches[0].num_tokens
    assert {b.num_rollouts for b in batches} == {len(rollouts)}
    for batch in batches:
        for micro in batch.micros:
            assert micro.tokens.size <= max(micro_tokens, micro.tokens.shape[1])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(LOSSES.keys() - {"clipped_covariance"})),
    LENGTHS,
    st.integers(4, 40),
    st.integers(8, 80),
    st.integers(1, 3),
    st.sampled_from(["token", "sequence"]),
    st.sampled_from(["token", "sequence", "geometric"]),
)
def test_rows_micro_batches_and_ranks_leave_loss_and_gradient_alone(
    name, lengths, row_tokens, micro_tokens, world, aggregate, level
):
    groups = random_groups(lengths, temperature=0.7)
    # One group is a step old, so both corrections have something to do.
    groups[0] = replace(groups[0], claim=replace(groups[0].claim, version=-1))
    record = record_of(groups, random_rewards(groups))
    corrections = {
        "mismatch": CorrectionSection(level=level, how="mask", low=0.1, high=10.0),
        "staleness": CorrectionSection(level=level, low=0.1, high=2.0),
    }
    loss_section = LossSection(aggregate=aggregate, entropy_coef=0.01, **corrections)

    def loss_and_gradient(section: LearnerSection, world: int):
        table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)).requires_grad_()
        total = torch.zeros(())
        for rank in range(world):
            for micro in pack(groups, record, section, rank, world).micros:
                logprobs, entropy = bigram_logprobs(table)(micro)
                loss, _ = objective(LOSSES[name](), loss_section, logprobs, entropy, tokens_of(micro, aggregate))
                total = total + loss
        total.backward()
        return total.detach(), table.grad

    plain = loss_and_gradient(LearnerSection(row_tokens=1, micro_tokens=1), 1)
    other = loss_and_gradient(LearnerSection(row_tokens=row_tokens, micro_tokens=micro_tokens), world)
    torch.testing.assert_close(other, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_groups_leaves_the_gradient_alone(name):
    groups = random_groups([[(3, 4), (3, 7)], [(2, 9), (2, 2)], [(5, 1), (5, 5)]])
    rewards = random_rewards(groups)
    section = LearnerSection(row_tokens=16, micro_tokens=32)

    def gradient(order):
        table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
        chosen = [groups[i] for i in order]
        for micro in pack(chosen, record_of(chosen, [rewards[i] for i in order]), section).micros:
            logprobs, entropy = bigram_logprobs(table)(micro)
            objective(LOSSES[name](), LossSection(), logprobs, entropy, tokens_of(micro, "token"))[0].backward()
        return table.grad

    torch.testing.assert_close(gradient([2, 0, 1]), gradient([0, 1, 2]))


def test_rollouts_of_unknown_reward_are_left_out():
    groups = random_groups([[(3, 4)] * 3])
    batch = pack(groups, record_of(groups, [np.array([1.0, np.nan, 0.0])]), LearnerSection())
    assert (batch.num_rollouts, batch.num_tokens) == (2, 8)
    trained = [m.advantages[m.loss_mask] for m in batch.micros]
    assert np.isfinite(np.concatenate(trained)).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_truncated_rollouts_are_trained_corrected_and_held_back_like_any_other(name, how, level, estimator):
    correction = CorrectionSection(how=how, level=level, high=1.5)
    section = LossSection(mismatch=correction, staleness=correction, kl_coef=0.1, kl_estimator=estimator)

    def gradient(finish):
        groups = random_groups([[(3, 4), (2, 6)], [(1, 5)]], finish=finish)
        groups[1] = replace(groups[1], claim=replace(groups[1].claim, version=-1))
        batch = pack(groups, record_of(groups, [np.array([1.0, 0.0]), np.array([0.5])]), LearnerSection())
        assert batch.num_tokens == 15
        assert batch.truncated.tolist() == [finish == "length"] * 3
        table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
        for micro in batch.micros:
            logprobs, entropy = bigram_logprobs(table)(micro)
            tokens = tokens_of(micro, "token", reference_logprobs=torch.full(micro.tokens.shape, -2.0))
            objective(LOSSES[name](), section, logprobs, entropy, tokens)[0].backward()
        return table.grad

    assert torch.equal(gradient("length"), gradient("stop"))


def test_staleness_is_that_of_the_span_a_token_was_sampled_in():
    spans = (VersionSpan("2.3", 2, 4), VersionSpan("2.4", 4, 5), VersionSpan("2.5", 5, 6), VersionSpan("1.5", 6, 7))
    spans += (VersionSpan("1.2", 7, 8),)
    groups = random_groups([[(2, 6), (1, 2)]], spans=spans)
    without = replace(groups[0].rollouts[1], spans=())
    claim = replace(groups[0].claim, epoch=2, version=3)
    groups = [replace(groups[0], claim=claim, rollouts=(groups[0].rollouts[0], without))]
    record = record_of(groups, [np.array([1.0, 0.0])], step=5)
    batch = pack(groups, record, LearnerSection(row_tokens=1), epoch=2)
    found = {int(m.rollout[r, 0]): m.staleness[r] for m in batch.micros for r in range(len(m.tokens))}
    # weights of a dead epoch are stale even where the step is the same
    assert found[0].tolist() == [0, 0, 2, 2, 1, 0, 1, 3]
    # without spans the version at admission counts
    assert found[1].tolist()[:3] == [0, 2, 2]


def test_the_first_token_of_a_sequence_is_never_trained_on():
    groups = random_groups([[(0, 4), (0, 4)]])
    batch = pack(groups, record_of(groups, [np.array([1.0, 0.0])]), LearnerSection())
    assert batch.num_tokens == 6
    assert not any((m.loss_mask & (m.positions == 0)).any() for m in batch.micros)


def test_per_token_advantages_reach_their_tokens():
    groups = random_groups([[(2, 3), (2, 2)]])
    record = record_of(groups, [np.array([1.0, 0.0])])
    per_token = (np.arange(5, dtype=np.float32), -np.arange(4, dtype=np.float32))
    found = unpacked([pack(groups, replace(record, advantages=(per_token,)), LearnerSection())])
    np.testing.assert_array_equal(found[0][4], [0, 0, 2, 3, 4])
    np.testing.assert_array_equal(found[1][4], [0, 0, -2, -3])


def test_a_step_without_rollouts_has_a_batch_without_tokens():
    for rank in range(2):
        batch = pack([], record_of([], []), LearnerSection(), rank, 2)
        assert batch.num_tokens == batch.num_rollouts == 0


def test_a_rank_without_rows_runs_as_many_micro_batches_as_the_others():
    groups = random_groups([[(4, 60)], [(2, 2)]])
    record = record_of(groups, [np.array([1.0]), np.array([0.0])])
    batches = [pack(groups, record, LearnerSection(micro_tokens=64), rank, 4) for rank in range(4)]
    assert [len(b.micros) for b in batches] == [1, 1, 1, 1]
    assert sum(m.loss_mask.any() for b in batches for m in b.micros) == 2


@pytest.mark.parametrize("world", [1, 2, 4])
def test_padding_is_small_and_ranks_are_balanced(world):
    rng = np.random.default_rng(0)
    groups = random_groups([[(6, int(n)) for n in rng.integers(1, 40, 16)] for _ in range(64)])
    record = record_of(groups, random_rewards(groups))
    batches = [pack(groups, record, LearnerSection(), rank, world) for rank in range(world)]
    assert max(b.metrics["learner/padding_frac"] for b in batches) < 0.05
    sizes = [sum(m.tokens.size for m in b.micros) for b in batches]
    assert max(sizes) < 1.1 * min(sizes)


def test_packing_a_step_of_1024_rollouts_takes_milliseconds():
    groups = random_groups([[(6, 6)] * 16] * 64, spans=(VersionSpan("1.0", 6, 12),))
    record = record_of(groups, random_rewards(groups))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        pack(groups, record, LearnerSection())
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05


def with_tail(stored, length: int):
    """The rollout with tokens behind its last trained one, as version 0.1 kept a last observation."""
    rng = np.random.default_rng(0)
    return replace(
        stored,
        tokens=np.append(stored.tokens, rng.integers(0, VOCABULARY, length).astype(np.int32)),
        loss_mask=np.append(stored.loss_mask, np.zeros(length, bool)),
        logprobs=np.append(stored.logprobs, np.zeros(length, np.float32)),
    )


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("append", [None, 5])
@pytest.mark.parametrize("world", [1, 2])
def test_tokens_behind_the_last_trained_one_are_not_packed(per_token, append, world):
    groups = random_groups([[(3, 4), (2, 5)], [(4, 2), (1, 1)]])
    record = record_of(groups, random_rewards(groups))
    if per_token:
        advantages = [[np.full(len(r.tokens), a[0], np.float32) for r, a in zip(g.rollouts, credits, strict=True)]
                      for g, credits in zip(groups, record.advantages, strict=True)]  # fmt: skip
        record = replace(record, advantages=tuple(map(tuple, advantages)))
    long = [replace(g, rollouts=tuple(with_tail(r, 100_000) for r in g.rollouts)) for g in groups]
    long_record = record
    if per_token:
        long_record = replace(
            record,
            advantages=tuple(tuple(np.append(a, np.zeros(100_000, np.float32)) for a in g) for g in record.advantages),
        )
    section = LearnerSection(row_tokens=16, micro_tokens=32)
    for rank in range(world):
        short = pack(groups, record, section, rank, world, append=append)
        trimmed = pack(long, long_record, section, rank, world, append=append)
        assert trimmed.num_tokens == short.num_tokens
        for one, other in zip(trimmed.micros, short.micros, strict=True):
            for name in ("tokens", "positions", "loss_mask", "advantages", "rollout", "staleness"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_rollout_longer_than_the_model_is_left_out_and_counted_on_every_rank():
    groups = random_groups([[(3, 4), (2, 60)], [(4, 2), (30, 34)]])
    record = record_of(groups, random_rewards(groups))
    section = LearnerSection(row_tokens=16, micro_tokens=32)
    for max_positions, append, expected in ((64, None, 0), (64, 5, 1), (61, None, 2), (None, None, 0)):
        decided, count = without_overlong(groups, record, max_positions, append=append)
        assert count == expected
        batches = [pack(groups, decided, section, rank, 2, append=append) for rank in range(2)]
        assert [b.num_rollouts for b in batches] == [4 - expected] * 2
        longest = max(int(m.positions.max()) + 1 for b in batches for m in b.micros)
        assert max_positions is None or longest <= max_positions
    tail = [replace(groups[0], rollouts=tuple(with_tail(r, 1000) for r in groups[0].rollouts)), groups[1]]
    assert without_overlong(tail, record, 64)[1] == 0, "what is not packed is not counted"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(30, 400), min_size=1, max_size=200), st.integers(1, 3))
def test_on_a_cpu_long_sequences_have_rows_of_their_own_and_little_padding(lengths, world):
    groups = random_groups([[(8, length) for length in lengths]])
    record = record_of(groups, random_rewards(groups))
    batches = [pack(groups, record, LearnerSection(), rank, world) for rank in range(world)]
    assert sorted(unpacked(batches)) == list(range(len(lengths)))
    for micro in (m for b in batches for m in b.micros if m.loss_mask.any()):
        assert (micro.positions[:, 0] == 0).all()
        assert (np.diff(micro.positions) == 1).all(), "a row restarts, and attention would need a mask"
        used = (micro.rollout >= 0).sum(1)
        assert (used[used < 0.75 * used.max()].size == 0) or micro.tokens.size <= 512 + micro.tokens.shape[1]


def test_short_sequences_share_rows():
    groups = random_groups([[(6, 4)] * 64])
    (micro,) = pack(groups, record_of(groups, random_rewards(groups)), LearnerSection()).micros
    assert micro.tokens.shape == (8, 80)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(8, 80), st.integers(1, 3), st.data())
def test_idle_micro_batches_have_no_advantage_on_any_rank(lengths, micro_tokens, world, data):
    groups = random_groups(lengths)
    rewards = [np.ones(len(r)) if data.draw(st.booleans()) else r for r in random_rewards(groups)]
    record, section = record_of(groups, rewards), LearnerSection(micro_tokens=micro_tokens, row_tokens=24)
    batches = [pack(groups, record, section, rank, world) for rank in range(world)]
    acts = [[bool(m.advantages[m.loss_mask].any()) for m in b.micros] for b in batches]
    for i, micros in enumerate(zip(*(b.micros for b in batches), strict=True)):
        assert len({m.idle for m in micros}) == 1
        assert not (micros[0].idle and any(of_rank[i] for of_rank in acts))
        if world == 1:
            assert micros[0].idle == (not acts[0][i] and any(acts[0])), "a step needs a gradient"
