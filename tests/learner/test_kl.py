"""Expectations over a whole vocabulary: what an estimator is on average, and its gradient."""

import pytest
import torch

from learner.losses.policy_losses import kl_to_reference

LN2 = 0.6931471805599453


def expectation(estimator: str) -> tuple[float, torch.Tensor, float, torch.Tensor, torch.Tensor]:
    """Mean of the estimate over the policy's tokens and its gradient; the true divergence with both gradients."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    mask = torch.ones(1, 6, dtype=torch.bool)
    estimates = kl_to_reference(logprobs[None], reference[None], mask, estimator)[0]
    # Tokens are sampled: their probability carries no gradient.
    mean = (logprobs.detach().exp() * estimates).sum()
    forward = (logprobs.exp() * (logprobs - reference)).sum()
    backward = (reference.exp() * (reference - logprobs)).sum()
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (mean, forward, backward)]
    return mean.item(), gradients[0], forward.item(), gradients[1], gradients[2]


@pytest.mark.parametrize(("estimator", "value"), [("k1", LN2), ("k2", LN2**2 / 2), ("k3", 0.5 - 1 + LN2)])
def test_estimates_by_hand(estimator, value):
    kl = kl_to_reference(torch.tensor([[-1.0]]), torch.tensor([[-1.0 - LN2]]), torch.tensor([[True]]), estimator)
    assert kl.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    mean, _, divergence, _, _ = expectation(estimator)
    assert mean == pytest.approx(divergence, abs=1e-12)


def test_k2_is_biased_but_has_the_gradient_of_the_divergence():
    mean, gradient, divergence, forward, _ = expectation("k2")
    assert abs(mean - divergence) > 0.01
    torch.testing.assert_close(gradient, forward)


def test_the_gradient_of_k1_is_nothing_and_of_k3_the_other_divergences():
    torch.testing.assert_close(expectation("k1")[1], torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    _, gradient, _, _, backward = expectation("k3")
    torch.testing.assert_close(gradient, backward)


def test_masked_tokens_have_no_divergence():
    mask = torch.tensor([[False, True]])
    for estimator in ("k1", "k2", "k3"):
        kl = kl_to_reference(torch.tensor([[1e9, -1.0]]), torch.tensor([[-1e9, -2.0]]), mask, estimator)
        assert kl[0, 0] == 0
        assert kl[0, 1] > 0
