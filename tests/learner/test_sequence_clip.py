"""SPC's offline objective (arXiv:2504.19162): a clipped ratio of whole rollouts, by length."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from learner.losses.sequence_losses.sequence_clip import SequenceClip, clipped_surrogate
from learner.losses.sequence_sums import Pairs, SequenceStats


def stats(logprobs, reference, num_tokens, rewards) -> SequenceStats:
    count = len(rewards)
    known = {
        "logprobs": torch.tensor(logprobs, dtype=torch.float64, requires_grad=True),
        "reference": torch.tensor(reference, dtype=torch.float64),
        "num_tokens": torch.tensor(num_tokens, dtype=torch.float64),
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "pairs": Pairs.of([]),
        "step": 0,
    }
    rest = {f.name: torch.zeros(count, dtype=torch.float64) for f in fields(SequenceStats) if f.name not in known}
    return SequenceStats(**known, **rest)


def test_the_numbers_of_spc():
    ratio = torch.tensor([-1.0 + 1.2], dtype=torch.float64).exp()
    assert float(ratio) == pytest.approx(1.221403, abs=1e-6)
    for advantage, loss in ((1.0, -1.2), (-1.0, 1.221403)):
        assert float(clipped_surrogate(ratio, torch.tensor([advantage]))) == pytest.approx(loss, abs=1e-6)


def test_a_ratio_is_of_the_mean_over_tokens_and_rollouts_count_alike():
    sums = stats([-5.0, -20.0], [-6.0, -24.0], [5, 20], [1.0, -1.0])
    loss, metrics = SequenceClip().loss(sums)
    assert float(loss.detach()) == pytest.approx((-1.2 + 1.221403) / 2, abs=1e-6)
    assert metrics == {"loss/sequence_clip_frac": 1.0}


def test_what_is_clipped_in_the_direction_of_its_reward_has_no_gradient():
    sums = stats([-5.0, -5.0, -5.0], [-6.0, -6.0, -5.0], [5, 5, 5], [1.0, -1.0, 1.0])
    SequenceClip().loss(sums)[0].backward()
    assert sums.logprobs.grad is not None
    first, second, third = sums.logprobs.grad.tolist()
    assert first == 0
    assert second == pytest.approx(1.221403 / 5 / 3, abs=1e-6)
    assert third == pytest.approx(-1 / 5 / 3)


def test_a_step_without_rollouts_is_no_loss():
    loss, metrics = SequenceClip().loss(stats([], [], [], []))
    assert float(loss.detach()) == 0
    assert metrics == {}
