"""Log-probs and entropies of tokens, and their gradients, against the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from learner.engine import forward
from learner.engine.forward import token_statistics


def plain(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = logits.double().log_softmax(-1)
    return logprobs[torch.arange(len(tokens)), tokens], torch.special.entr(logprobs.exp()).sum(-1)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 7])  # of a chunk; 7 leaves a shorter last one
def test_values_and_gradients_are_those_of_the_formulas(monkeypatch, entropy_grad, rows):
    torch.manual_seed(0)
    monkeypatch.setitem(forward.CHUNK_BYTES, "cpu", rows * 4 * 11)
    logits = (3 * torch.randn(20, 11)).requires_grad_()
    tokens = torch.randint(11, (20,))
    weights = torch.randn(2, 20)
    chosen, entropy = token_statistics(logits, tokens, entropy_grad=entropy_grad)
    expected = plain(logits, tokens)
    assert torch.allclose(chosen.double(), expected[0], atol=1e-6)
    assert torch.allclose(entropy.double(), expected[1], atol=1e-6)
    assert entropy.requires_grad == entropy_grad
    loss = (chosen * weights[0]).sum() + ((entropy * weights[1]).sum() if entropy_grad else 0)
    (grad,) = torch.autograd.grad(loss, logits)
    wanted = (expected[0] * weights[0]).sum() + ((expected[1] * weights[1]).sum() if entropy_grad else 0)
    (grad_wanted,) = torch.autograd.grad(wanted, logits)
    assert torch.allclose(grad, grad_wanted, atol=1e-6)


def test_a_token_that_cannot_come_is_no_nan():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    chosen, entropy = token_statistics(logits, torch.tensor([1]), entropy_grad=True)
    assert entropy.item() == pytest.approx(math.log(2))
    (chosen + entropy).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.5, 0.5, 0.0])


def test_logits_in_bf16_are_summed_in_fp32():
    torch.manual_seed(0)
    logits = torch.randn(4, 1000).bfloat16().requires_grad_()
    chosen, entropy = token_statistics(logits, torch.arange(4), entropy_grad=False)
    expected = plain(logits, torch.arange(4))
    assert chosen.dtype == entropy.dtype == torch.float32
    assert torch.allclose(chosen.double(), expected[0], atol=1e-5)
    assert torch.allclose(entropy.double(), expected[1], atol=1e-5)
    chosen.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
