"""Every trained token comes back to its place in its rollout, whatever rows and ranks it was packed into."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import LearnerSection
from learner.batch.trained_logprobs import TrainedLogprobs
from learner.pack import pack
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.learner.test_pack import LENGTHS


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(4, 40), st.integers(1, 3), st.sampled_from([None, 3]))
def test_tokens_come_back_to_their_place(lengths, row_tokens, world, append):
    groups = random_groups(lengths)
    rewards = random_rewards(groups)
    rewards[0][0] = np.nan  # left out of the step
    record, section = record_of(groups, rewards), LearnerSection(row_tokens=row_tokens, micro_tokens=2 * row_tokens)
    ranks = []
    for rank in range(world):
        told = TrainedLogprobs()
        for micro in pack(groups, record, section, rank, world, append=append).micros:
            told.on_logprobs(micro, torch.tensor(-(micro.tokens + micro.positions / 100)).requires_grad_())
        ranks.append(told.take(groups, record, section))
        assert all(np.isnan(a).all() for rollouts in told.take(groups, record, section) for a in rollouts)
    for g, group in enumerate(groups):
        for i, rollout in enumerate(group.rollouts):
            heard = np.stack([rank[g][i] for rank in ranks])
            trained = rollout.loss_mask & (np.arange(len(rollout.tokens)) > 0) & ((g, i) != (0, 0))
            assert (np.isfinite(heard).sum(0) == trained).all(), "each trained token on one rank, and no other"
            expected = -(rollout.tokens + np.arange(len(rollout.tokens)) / 100)
            np.testing.assert_allclose(np.nansum(heard, 0)[trained], expected[trained], rtol=1e-6)
