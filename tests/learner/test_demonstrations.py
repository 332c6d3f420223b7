"""Conversations beside the rollouts of a step: their gradient is that of a batch of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.losses.demonstrations import DemonstrationLoss
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.learner.test_update import LENGTHS, at, logprobs_of, section_of, step

COEF = 0.3


def demonstrations(number: int):
    rng = np.random.default_rng(number)
    return random_groups([[(int(a), int(b)) for a, b in rng.integers(1, 9, (1, 2))] for _ in range(3)], seed=number)


@pytest.mark.parametrize("micro_tokens", [8, 32, 4096])
def test_the_gradient_is_that_of_the_rollouts_plus_that_of_the_demonstrations(micro_tokens):
    groups = at(0.7, random_groups(LENGTHS))
    record = record_of(groups, random_rewards(groups))
    section = section_of().model_copy(update={"micro_tokens": micro_tokens})
    asked = []

    def rows(number: int):
        asked.append(number)
        return demonstrations(number), ["one row is unreadable"]

    alone, _ = step(section, groups, record)
    both, metrics = step(section, groups, record, plugins=[DemonstrationLoss(COEF, rows, section)])

    table = torch.zeros_like(alone.table, requires_grad=True)
    rollouts = [rollout for group in demonstrations(0) for rollout in group.rollouts]
    loss = -torch.stack([logprobs_of(table, r, 1.0) for r in rollouts]).sum() / sum(r.num_tokens for r in rollouts)
    (gradient,) = torch.autograd.grad(COEF * loss, table)
    torch.testing.assert_close(alone.table - both.table, gradient, atol=1e-5, rtol=1e-4)
    assert asked == [0]
    assert metrics["loss/demonstrations_nats"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["learner/num_left_out_rows"] == 1


def test_updates_of_a_step_share_out_the_demonstrations_and_passes_repeat_them():
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))
    section = section_of(updates_per_batch=2, passes_per_batch=2)
    asked = []

    def rows(number: int):
        asked.append(number)
        return demonstrations(number), []

    step(section, groups, record, plugins=[DemonstrationLoss(COEF, rows, section)])
    assert asked == [0, 1, 0, 1]


def test_without_a_usable_row_the_rollouts_are_trained_on_alone():
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))
    section = section_of()
    alone, _ = step(section, groups, record)
    both, metrics = step(section, groups, record, plugins=[DemonstrationLoss(COEF, lambda _: ([], ["bad"]), section)])
    torch.testing.assert_close(alone.table, both.table)
    assert "loss/demonstrations_nats" not in metrics
