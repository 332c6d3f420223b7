"""Imitation and exploration by entropy: the numbers of AMFT's check (arXiv:2508.06944)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster import config
from cluster.types import AssembledBatch
from learner.controllers.amft import Amft, balanced
from learner.controllers.apply import memory_of, steered
from tests.learner.groups import random_groups, random_rewards, record_of


def test_the_numbers_of_the_catalogue():
    assert balanced(0.5, 1.2, 1.0, inner=3) == pytest.approx(0.500100003, abs=1e-12)
    assert balanced(0.5, 1.2, 1.0, inner=3, released=True) == pytest.approx(0.500099997, abs=1e-12)
    assert balanced(0.95, 10.0, 0.0) == 0.95
    assert balanced(0.05, 0.0, 1e4) == 0.05


def test_a_policy_that_is_too_sure_imitates_more():
    groups = random_groups([[(2, 3), (1, 5)]])

    def batch(nats: float) -> AssembledBatch:
        own = [replace(g, rollouts=tuple(of(r, nats) for r in g.rollouts)) for g in groups]
        return AssembledBatch(record_of(own, random_rewards(own)), own)

    def of(rollout, nats: float):
        return replace(rollout, logprobs=np.where(rollout.loss_mask, -nats, 0).astype(np.float32))

    controller = Amft(target_nats=0.5, rate=0.1)
    state = controller.init_state()
    assert controller.update(state, batch(0.25)) == pytest.approx(0.525)
    assert controller.update(state, batch(1.0)) == pytest.approx(0.45)
    assert controller.update(state, AssembledBatch(record_of([], []), [])) == state


def test_both_losses_are_weighed_in_the_step():
    """With a policy loss of 2 and an imitation loss of 1, μ = ¼ makes 1.75 of them."""
    tree = {
        "learner": {"demonstrations": {"path": "x.jsonl"}},
        "controllers": [{"use": "amft", "options": {"target_nats": 0.5, "start": 0.25}}],
    }
    settings = config.parse(tree)
    section = steered(settings.learner, memory_of(settings, {}).settings())
    assert section.demonstrations is not None
    assert section.loss.coef * 2 + section.demonstrations.coef * 1 == pytest.approx(1.75)
