import numpy as np
import pytest
import torch

from learner.losses.value_loss import clipped_value_loss, generalized_advantages

REWARDS, VALUES = np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.0, 4.0])


def test_advantages_of_three_tokens_by_hand():
    advantages, returns = generalized_advantages(REWARDS, VALUES, gamma=0.5, lam=0.5)
    # errors: 0 + 0.5·1 − 0.5 = 0; 1 + 0.5·4 − 1 = 2; 2 + 0 − 4 = −2; each adds 0.25 of the next
    np.testing.assert_allclose(advantages, [0.375, 1.5, -2.0])
    np.testing.assert_allclose(returns, [0.875, 2.5, 2.0])


def test_lambda_1_is_the_return_minus_the_value_and_lambda_0_the_one_step_error():
    advantages, returns = generalized_advantages(REWARDS, VALUES, gamma=0.9, lam=1.0)
    np.testing.assert_allclose(returns, [0.9 * (1 + 0.9 * 2), 1 + 0.9 * 2, 2.0])
    np.testing.assert_allclose(advantages, returns - VALUES)
    one_step, _ = generalized_advantages(REWARDS, VALUES, gamma=0.9, lam=0.0)
    np.testing.assert_allclose(one_step, [0.9 * 1 - 0.5, 1 + 0.9 * 4 - 1, 2 - 4])


def test_a_truncated_rollout_goes_on_with_the_value_at_its_cut():
    whole, whole_returns = generalized_advantages(REWARDS, VALUES, gamma=0.5, lam=0.5)
    cut, cut_returns = generalized_advantages(REWARDS, VALUES, gamma=0.5, lam=0.5, value_at_cut=8.0)
    np.testing.assert_allclose(cut - whole, [0.5 * 8 / 16, 0.5 * 8 / 4, 0.5 * 8])
    np.testing.assert_allclose(cut_returns - whole_returns, cut - whole)


def test_a_head_that_is_right_sees_no_difference_between_cut_and_whole():
    rewards, values = np.array([0.0, 0.0, 0.0, 1.0]), np.ones(4)
    whole, _ = generalized_advantages(rewards, values)
    cut, _ = generalized_advantages(rewards[:2], values[:2], value_at_cut=values[2])
    np.testing.assert_allclose(whole, 0.0)
    np.testing.assert_allclose(cut, 0.0)


@pytest.mark.parametrize("bad", [{"rewards": np.array([np.nan])}, {"values": np.array([np.inf])}])
def test_an_unknown_number_is_refused(bad):
    arguments = {"rewards": np.ones(1), "values": np.ones(1)} | bad
    with pytest.raises(ValueError, match="finite"):
        generalized_advantages(**arguments)
    with pytest.raises(ValueError, match="finite"):
        generalized_advantages(np.ones(1), np.ones(1), value_at_cut=float("nan"))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shape"):
        generalized_advantages(np.ones(2), np.ones(3))


def value_loss(values, old, returns, clip):
    values = torch.tensor([values], requires_grad=True)
    mask = torch.ones_like(values, dtype=torch.bool)
    loss, metrics = clipped_value_loss(
        values, torch.tensor([old]), torch.tensor([returns]), mask, mask.float(), clip=clip
    )
    loss.backward()
    assert values.grad is not None
    return loss.item(), values.grad[0].tolist(), metrics["value/clipped_frac"].item()


def test_value_loss_by_hand():
    values, old, returns = [1.0, 3.0, 0.0], [0.0, 3.0, 0.0], [2.0, 1.0, 0.5]
    loss, gradient, clipped = value_loss(values, old, returns, None)
    assert loss == pytest.approx((1 + 4 + 0.25) / 2)
    assert gradient == [-1.0, 2.0, -0.5]
    assert clipped == 0
    # within 0.5 of 0 the first value is 0.5, an error of 1.5: the worse one counts, and it does not move
    loss, gradient, clipped = value_loss(values, old, returns, 0.5)
    assert loss == pytest.approx((2.25 + 4 + 0.25) / 2)
    assert gradient == [0.0, 2.0, -0.5]
    assert clipped == 1


def test_a_value_that_moved_away_from_its_return_is_pulled_back_whatever_the_clip():
    assert value_loss([-1.0], [0.0], [2.0], 0.5)[1] == [-3.0]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_masked_positions_reach_neither_value_loss_nor_gradient(clip):
    mask = torch.tensor([[True, False]])
    values = torch.tensor([[1.0, 1e9]], requires_grad=True)
    dirty = torch.tensor([[0.5, -1e9]])
    loss, _ = clipped_value_loss(values, dirty, dirty, mask, mask.float(), clip=clip)
    loss.backward()
    assert loss.item() == pytest.approx(0.125)
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.0]]
