import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import CorrectionSection, LossSection, parse
from cluster.errors import ConfigError, PluginError
from cluster.types import MicroBatch
from learner.losses.policy_losses import (
    LOSSES,
    Cispo,
    Clipped,
    Decoupled,
    Gspo,
    PolicyLoss,
    TruncatedImportance,
    objective,
)
from learner.pack import TokenBatch, tokens_of

LN2 = float(np.log(2.0))


def one_row(log_ratios: list[float], advantages: list[float], reference: list[float] | None = None):
    """Trained tokens with these log-ratios to the behaviour policy, after one untrained token."""
    behaviour = torch.tensor([[0.0, *[-1.0] * len(log_ratios)]])
    logprobs = (behaviour + torch.tensor([[0.0, *log_ratios]])).requires_grad_()
    mask = torch.tensor([[False, *[True] * len(log_ratios)]])
    none = torch.zeros(mask.shape, dtype=torch.int64)
    tokens = TokenBatch(mask, mask.float(), behaviour, torch.tensor([[0.0, *advantages]]), none, none)
    if reference is not None:
        tokens = replace(tokens, reference_logprobs=torch.tensor([[0.0, *reference]]))
    return logprobs, tokens


def loss_and_gradient(policy_loss: PolicyLoss, logprobs: torch.Tensor, tokens: TokenBatch) -> tuple[float, list[float]]:
    logprobs = logprobs.detach().requires_grad_()
    loss, _ = policy_loss.loss(logprobs, tokens)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.flatten().tolist()


def near(expected):
    return pytest.approx(expected, abs=1e-5)


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


def test_gspo_of_two_rollouts_by_hand():
    # mean log-ratios ln 2 and −ln 2: s = 2 and 0.5
    logprobs, tokens = one_row([2 * LN2, 0.0, -LN2, -LN2], [1.0, 1.0, -3.0, -3.0])
    weight = torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.5]])  # each rollout has one vote
    tokens = replace(tokens, rollout=torch.tensor([[2, 0, 0, 1, 1]]), weight=weight)
    loss, gradient = loss_and_gradient(Gspo(clip_low=0.6, clip_high=1.5), logprobs, tokens)
    assert loss == near(-2.0 * 1.0 + 0.5 * 3.0)
    # −s · A / length, the same for all tokens of a rollout
    assert gradient == near([0.0, -1.0, -1.0, 0.75, 0.75])
    loss, metrics = Gspo(clip_low=0.2, clip_high=0.3).loss(logprobs, tokens)
    assert loss.item() == near(-1.3 * 1.0 + 0.8 * 3.0)
    assert metrics["loss/clipped_frac"].item() == 4, "a rollout is clipped whole"
    assert loss_and_gradient(Gspo(clip_low=0.2, clip_high=0.3), logprobs, tokens)[1] == [0.0] * 5


def test_gspo_is_the_clipped_surrogate_of_a_ratio_per_rollout():
    """Equation 5 written down plainly: the token form has its value and gradient."""
    generator = torch.Generator().manual_seed(0)
    lengths, rewards = [3, 1, 5], [1.0, -2.0, -0.5]
    rollout = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    behaviour = -torch.rand(1, 9, generator=generator)
    logprobs = (behaviour + 0.4 * torch.randn(1, 9, generator=generator)).requires_grad_()
    plain = torch.zeros(())
    for i, reward in enumerate(rewards):
        s = (logprobs - behaviour)[rollout == i].mean().exp()
        plain = plain - torch.minimum(s * reward, s.clamp(0.9, 1.1) * reward)
    (expected,) = torch.autograd.grad(plain, logprobs)
    weight = 1 / torch.tensor(lengths)[rollout]
    mask = torch.ones(1, 9, dtype=torch.bool)
    tokens = TokenBatch(mask, weight, behaviour, torch.tensor(rewards)[rollout], rollout, rollout * 0)
    loss, gradient = loss_and_gradient(Gspo(clip_low=0.1, clip_high=0.1), logprobs, tokens)
    assert loss == near(plain.item())
    assert gradient == near(expected.flatten().tolist())


def test_gspo_of_rollouts_of_one_token_is_the_clipped_loss():
    logprobs, tokens = one_row([0.5, 0.1, -0.1, -0.7], [1.0, -1.0, 2.0, -0.5])
    tokens = replace(tokens, rollout=torch.arange(5)[None])
    bounds = {"clip_low": 0.2, "clip_high": 0.3}
    assert loss_and_gradient(Gspo(**bounds), logprobs, tokens) == loss_and_gradient(Clipped(**bounds), logprobs, tokens)


def test_gspo_with_an_advantage_per_token_gives_each_token_its_own():
    logprobs, tokens = one_row([0.0, 0.0], [1.0, -2.0])
    assert loss_and_gradient(Gspo(), logprobs, tokens)[1] == near([0.0, -1.0, 2.0])


def test_cispo_by_hand():
    logprobs, tokens = one_row([np.log(4.0), -2 * LN2, 0.0], [1.0, -2.0, 3.0])
    policy_loss = Cispo(clip_low=0.5, clip_high=2.0)
    loss, gradient = loss_and_gradient(policy_loss, logprobs, tokens)
    # ratios 4, 1/4 and 1 within [0.5, 3]; log-probs −1 + ln 4, −1 − ln 4 and −1
    assert loss == near(-3.0 * (-1 + 2 * LN2) + 0.5 * 2 * (-1 - 2 * LN2) + 3.0)
    assert gradient == near([0.0, -3.0, 1.0, -3.0])
    assert policy_loss.loss(logprobs, tokens)[1]["loss/clipped_frac"].item() == 2


@pytest.mark.parametrize("policy_loss", [Cispo(), TruncatedImportance(), Decoupled()])
def test_no_token_loses_its_gradient_however_far_its_ratio(policy_loss):
    advantages = [1.0, -1.0, 1.0, -1.0]
    logprobs, tokens = one_row([8.0, 8.0, -3.0, -3.0], advantages)
    gradient = loss_and_gradient(policy_loss, logprobs, tokens)[1][1:]
    assert np.sign(gradient).tolist() == [-np.sign(a) for a in advantages]


def test_cispo_without_a_lower_bound_is_truncated_importance():
    logprobs, tokens = one_row([2.0, 0.3, -3.0], [1.0, -2.0, 0.5])
    assert loss_and_gradient(Cispo(clip_high=1.5), logprobs, tokens) == loss_and_gradient(
        TruncatedImportance(cap=2.5), logprobs, tokens
    )


def test_decoupled_loss_by_hand():
    # proximal / behaviour = 4 and 1/2, policy / proximal = 2 and 2
    behaviour = torch.tensor([[-3.0, -3.0]])
    proximal = behaviour + torch.tensor([[2 * LN2, -LN2]])
    logprobs = (proximal + LN2).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    tokens = TokenBatch(
        mask, mask.float(), behaviour, torch.tensor([[1.0, -1.0]]), mask.long(), mask.long(), proximal_logprobs=proximal
    )
    loss, metrics = Decoupled(clip_low=0.2, clip_high=0.3, cap=3.0).loss(logprobs, tokens)
    loss.backward()
    # 3 · −min(2, 1.3) and 0.5 · −min(−2, −1.3)
    assert loss.item() == near(-3 * 1.3 + 0.5 * 2)
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == near([0.0, 1.0])
    assert metrics["loss/capped_frac"].item() == 1
    assert metrics["loss/clipped_frac"].item() == 1


def test_with_one_step_a_cut_decoupled_has_the_gradient_of_truncated_importance():
    logprobs, tokens = one_row([2.0, 0.3, -3.0], [1.0, -2.0, 0.5])
    decoupled = loss_and_gradient(Decoupled(cap=3.0), logprobs, tokens)[1]
    assert decoupled == near(loss_and_gradient(TruncatedImportance(cap=3.0), logprobs, tokens)[1])


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_loss_has_the_plain_policy_gradient(name):
    advantages = [1.0, -2.0, 0.5]
    logprobs, tokens = one_row([0.0] * 3, advantages)
    gradient = loss_and_gradient(LOSSES[name](), logprobs, tokens)[1]
    assert gradient == near([0.0, *(-a for a in advantages)])


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
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("garbage", [1e9, -1e9])
def test_garbage_in_masked_positions_changes_neither_loss_nor_gradient(name, level, garbage):
    correction = CorrectionSection(level=level, high=1.2)
    section = LossSection(kl_coef=0.1, entropy_coef=0.1, mismatch=correction, staleness=correction)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 7, generator=generator) < 0.5
    rollout = torch.arange(3)[:, None] * 2 + (torch.arange(7) > 3)
    staleness = torch.arange(7).expand(3, 7) % 2

    def run(fill: float | None):
        g = torch.Generator().manual_seed(1)
        arrays = [-torch.rand(3, 7, generator=g) for _ in range(5)]
        if fill is not None:
            arrays = [torch.where(mask, a, fill * (i + 1)) for i, a in enumerate(arrays)]
        logprobs, behaviour, advantages, reference, entropy = arrays
        logprobs.requires_grad_()
        tokens = TokenBatch(mask, mask.float(), behaviour, advantages, rollout, staleness, reference)
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
    micro = MicroBatch(zeros.astype(int), zeros.astype(int), mask, zeros, zeros, zeros + 1, rollout, rollout * 0)
    np.testing.assert_allclose(tokens_of(micro, "sequence").weight, [[0, 1 / 3, 1 / 3, 1 / 3, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(tokens_of(micro, "token").weight, [[0, 1, 1, 1, 0, 1]])
    np.testing.assert_allclose(tokens_of(micro, "constant").weight, [[0, 1, 1, 1, 0, 1]])


def test_a_constant_denominator_needs_its_constant_and_nothing_else_does():
    for loss in ({"aggregate": "constant"}, {"constant_tokens": 4}):
        with pytest.raises(ConfigError, match="constant_tokens"):
            parse({"learner": {"loss": loss}})


def test_groups_of_one_need_a_baseline_that_is_not_their_own():
    learner = {"advantage": {"use": "reinforce_plus_plus"}, "drop_zero_variance": False}
    assert parse({"rollout": {"group_size": 1}, "learner": learner}).rollout.group_size == 1
    with pytest.raises(ConfigError, match="drop_zero_variance"):
        parse({"rollout": {"group_size": 1}, "learner": learner | {"drop_zero_variance": True}})


class Answers(PolicyLoss):
    """Says what it is told to, or raises it."""

    what: object

    def loss(self, logprobs, tokens):
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (RuntimeError("sizes differ"), ["raised RuntimeError: sizes differ.", "[1, 3]"]),
        (torch.zeros(()), ["returned tensor(0.)", "Return (sum over tokens"]),
        ((torch.zeros(1, 3), {}), ["the loss is of shape [1, 3]", "sum over tokens"]),
        ((1.5, {}), ["the loss is 1.5"]),
        ((torch.zeros(()), {"loss/far_frac": torch.zeros(2)}), ["loss/far_frac is of shape [2]"]),
    ],
)
def test_a_broken_loss_is_named(what, words):
    logprobs, tokens = one_row([0.0, 0.0], [1.0, 2.0])
    with pytest.raises(PluginError) as caught:
        objective(Answers(what=what), LossSection(use="mine:Answers"), logprobs, torch.zeros(1, 3), tokens)
    for word in ["learner.loss.use = 'mine:Answers'", *words]:
        assert word in str(caught.value)


def test_a_reference_without_a_coefficient_is_measured_and_not_in_the_loss():
    """Also where k3 would overflow: the log-ratio is clamped to 20 nats."""
    logprobs, tokens = one_row([0.0, 0.0], [1.0, 2.0], reference=[200.0, -1.0])
    loss, metrics = objective(Clipped(), LossSection(), logprobs, torch.zeros(1, 3), tokens)
    assert metrics["loss/kl_nats"] == pytest.approx(math.expm1(20) - 20, rel=1e-6)
    assert loss.item() == near(-3.0)
