from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import LossSection
from cluster.types import Micro
from learner.losses import (
    LOSSES,
    Clipped,
    Tokens,
    TruncatedImportance,
    kl_to_reference,
    objective,
    tokens_of,
)

LN2 = float(np.log(2.0))


def one_row(log_ratios: list[float], advantages: list[float], reference: list[float] | None = None):
    """Trained tokens with these log-ratios to the behaviour policy, after one untrained token."""
    behaviour = torch.tensor([[0.0, *[-1.0] * len(log_ratios)]])
    logprobs = (behaviour + torch.tensor([[0.0, *log_ratios]])).requires_grad_()
    mask = torch.tensor([[False, *[True] * len(log_ratios)]])
    tokens = Tokens(mask, mask.float(), behaviour, torch.tensor([[0.0, *advantages]]))
    if reference is not None:
        tokens = replace(tokens, reference_logprobs=torch.tensor([[0.0, *reference]]))
    return logprobs, tokens


def test_clipped_loss_of_four_tokens_by_hand():
    logprobs, tokens = one_row([LN2, LN2, -LN2, -LN2], [1.0, -1.0, 1.0, -1.0])
    loss, metrics = Clipped(clip_low=0.2, clip_high=0.3).loss(logprobs, tokens)
    # −min(2·1, 1.3·1), −min(2·−1, 1.3·−1), −min(0.5, 0.8), −min(−0.5, −0.8)
    assert loss.item() == pytest.approx(-1.3 + 2.0 - 0.5 + 0.8, abs=1e-6)
    assert metrics["loss/clipped_frac"].item() == 2
    loss.backward()
    # clipped tokens have no gradient; of the others it is −ratio · advantage
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 0.0, 2.0, -0.5, 0.0], abs=1e-6)


def test_dual_clip_bounds_what_a_bad_token_can_cost():
    logprobs, tokens = one_row([np.log(10.0)] * 2, [-1.0, 1.0])
    loss, _ = Clipped(dual_clip=3.0).loss(logprobs, tokens)
    assert loss.item() == pytest.approx(3.0 - 1.2, abs=1e-5)


def test_truncated_importance_by_hand():
    logprobs, tokens = one_row([np.log(4.0), -LN2], [1.0, -2.0])
    loss, metrics = TruncatedImportance(cap=3.0).loss(logprobs, tokens)
    # −min(4, 3)·1·(−1 + ln 4) and −0.5·−2·(−1 − ln 2)
    assert loss.item() == pytest.approx(-3.0 * (-1.0 + 2 * LN2) + (-1.0 - LN2), abs=1e-5)
    assert metrics["loss/clipped_frac"].item() == 1
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, -3.0, 1.0], abs=1e-5)


@pytest.mark.parametrize(("estimator", "value"), [("k1", LN2), ("k2", LN2**2 / 2), ("k3", 0.5 - 1 + LN2)])
def test_kl_estimators_by_hand(estimator, value):
    kl = kl_to_reference(torch.tensor([[-1.0]]), torch.tensor([[-1.0 - LN2]]), torch.tensor([[True]]), estimator)
    assert kl.item() == pytest.approx(value, abs=1e-6)


def test_the_objective_adds_kl_and_takes_off_entropy():
    logprobs, tokens = one_row([0.0, 0.0], [1.0, 2.0], reference=[-1.0 - LN2, -1.0])
    entropy = torch.tensor([[9.0, 0.5, 1.0]])
    section = LossSection(kl_coef=0.1, kl_estimator="k1", entropy_coef=0.01)
    loss, metrics = objective(Clipped(), section, logprobs, entropy, tokens)
    assert loss.item() == pytest.approx(-3.0 + 0.1 * LN2 - 0.01 * 1.5, abs=1e-6)
    assert metrics["loss/entropy_nats"].item() == pytest.approx(1.5)
    assert metrics["loss/kl_nats"].item() == pytest.approx(LN2, abs=1e-6)
    assert metrics["loss/policy"].item() == pytest.approx(-3.0)
    assert metrics["loss/ratio_mean"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [1e9, -1e9])
def test_garbage_in_masked_positions_changes_neither_loss_nor_gradient(name, garbage):
    section = LossSection(kl_coef=0.1, entropy_coef=0.1)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 7, generator=generator) < 0.5

    def run(fill: float | None):
        g = torch.Generator().manual_seed(1)
        arrays = [-torch.rand(3, 7, generator=g) for _ in range(5)]
        if fill is not None:
            arrays = [torch.where(mask, a, fill * (i + 1)) for i, a in enumerate(arrays)]
        logprobs, behaviour, advantages, reference, entropy = arrays
        logprobs.requires_grad_()
        tokens = Tokens(mask, mask.float(), behaviour, advantages, reference)
        loss, metrics = objective(LOSSES[name](), section, logprobs, entropy, tokens)
        loss.backward()
        assert logprobs.grad is not None
        return loss.detach(), logprobs.grad, metrics

    clean, dirty = run(None), run(garbage)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert all(torch.equal(clean[2][k], dirty[2][k]) for k in clean[2])


def test_sequence_aggregation_gives_each_rollout_one_vote():
    mask = np.array([[False, True, True, True, False, True]])
    zeros = np.zeros(mask.shape, np.float32)
    rollout = np.array([[4, 4, 4, 4, 6, 6]])
    micro = Micro(zeros.astype(int), zeros.astype(int), mask, zeros, zeros, zeros + 1, rollout)
    np.testing.assert_allclose(tokens_of(micro, "sequence").weight, [[0, 1 / 3, 1 / 3, 1 / 3, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(tokens_of(micro, "token").weight, [[0, 1, 1, 1, 0, 1]])
