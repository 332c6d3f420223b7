"""Ratios of engine mismatch and of staleness: apart, by hand."""

from typing import Any

import pytest
import torch

from cluster.config import CorrectionSection, LossSection
from learner.losses.policy_losses import (
    Clipped,
    Decoupled,
    TruncatedImportance,
    corrected,
    masked_weight,
    objective,
    ratio_at,
    truncated_weight,
)
from learner.pack import TokenBatch

LN2 = 0.6931471805599453
MASK = torch.tensor([[False, True, True, True, True]])
ROLLOUT = torch.tensor([[0, 0, 0, 1, 1]])
LOG_RATIO = torch.tensor([[9.0, LN2, 3 * LN2, -LN2, LN2]])
"""Ratios 2 and 8 in one rollout, 1/2 and 2 in the other."""


def tokens_with(staleness: list[int], advantages: list[float] | None = None) -> tuple[torch.Tensor, TokenBatch]:
    behaviour = torch.full((1, 5), -4.0)
    tokens = TokenBatch(
        MASK, MASK.float(), behaviour, torch.tensor([advantages or [1.0] * 5]), ROLLOUT, torch.tensor([staleness])
    )
    return (behaviour + LOG_RATIO).requires_grad_(), tokens


def weights(behind: list[int], **corrections: CorrectionSection) -> list[float]:
    logprobs, tokens = tokens_with(behind)
    return corrected(logprobs, tokens, LossSection(**corrections))[0].weight[0].tolist()


@pytest.mark.parametrize(
    ("level", "expected"),
    [("token", [1, 2, 8, 0.5, 2]), ("sequence", [1, 16, 16, 1, 1]), ("geometric", [1, 4, 4, 1, 1])],
)
def test_ratios_by_hand(level, expected):
    assert ratio_at(LOG_RATIO, ROLLOUT, MASK, level)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_rollouts_ratio_is_of_the_chosen_tokens_alone():
    chosen = torch.tensor([[False, True, False, True, True]])
    assert ratio_at(LOG_RATIO, ROLLOUT, chosen, "sequence")[0].tolist() == pytest.approx([1, 2, 1, 1, 1], rel=1e-5)
    assert ratio_at(LOG_RATIO, ROLLOUT, chosen, "geometric")[0].tolist() == pytest.approx([1, 2, 1, 1, 1], rel=1e-5)


def test_truncated_and_masked_weights_by_hand():
    ratio = torch.tensor([[9.0, 2.0, 8.0, 0.4, 0.5]])
    assert truncated_weight(ratio, MASK, low=0.5, high=3.0)[0].tolist() == [1, 2, 3, 0.5, 0.5]
    assert masked_weight(ratio, MASK, low=0.5, high=3.0)[0].tolist() == [1, 1, 0, 0, 1]


def test_mismatch_is_corrected_on_fresh_tokens_and_staleness_on_old_ones():
    mismatch, staleness = CorrectionSection(high=1.5), CorrectionSection(high=4.0)
    behind = [0, 0, 3, 1, 0]
    assert weights(behind) == [0, 1, 1, 1, 1]
    assert weights(behind, mismatch=mismatch) == pytest.approx([0, 1.5, 1, 1, 1.5])
    assert weights(behind, staleness=staleness) == pytest.approx([0, 1, 4, 0.5, 1])
    assert weights(behind, mismatch=mismatch, staleness=staleness) == pytest.approx([0, 1.5, 4, 0.5, 1.5])


@pytest.mark.parametrize(("level", "expected"), [("sequence", [0, 0, 0, 1, 1]), ("geometric", [0, 1, 1, 1, 1])])
def test_a_rollout_out_of_bounds_is_left_out_whole(level, expected):
    assert weights([0] * 5, mismatch=CorrectionSection(how="mask", level=level, low=0.5, high=5.0)) == expected


def test_each_cause_has_its_divergence_over_its_own_tokens():
    logprobs, tokens = tokens_with([0, 0, 3, 1, 0])
    correction = CorrectionSection(high=1.5)
    metrics = corrected(logprobs, tokens, LossSection(mismatch=correction, staleness=correction))[1]
    assert metrics["policy/mismatch_kl_nats"].item() == pytest.approx(-2 * LN2)
    assert metrics["policy/staleness_kl_nats"].item() == pytest.approx(-3 * LN2 + LN2)
    assert metrics["policy/stale_frac"].item() == 2
    assert metrics["loss/mismatch_bound_frac"].item() == 2
    assert metrics["loss/staleness_bound_frac"].item() == 1


def gradient(policy_loss: Any, section: LossSection, staleness: list[int]) -> list[float]:
    logprobs, tokens = tokens_with(staleness, [1.0, 1.0, -1.0, 2.0, -2.0])
    objective(policy_loss, section, logprobs, torch.zeros(1, 5), tokens)[0].backward()
    assert logprobs.grad is not None
    return logprobs.grad[0].tolist()


def test_a_truncated_ratio_is_not_counted_again_by_the_loss():
    section = LossSection(mismatch=CorrectionSection(high=3.0))
    # −ratio · A with the ratio at most 3, clipped by nothing: the loss's own ratio is 1
    assert gradient(Clipped(), section, [0] * 5) == pytest.approx([0, -2, 3, -1, 4])
    assert gradient(TruncatedImportance(cap=1.5), section, [0] * 5) == pytest.approx([0, -2, 3, -1, 4])


def test_a_mask_leaves_the_rest_to_the_losss_own_ratio():
    section = LossSection(mismatch=CorrectionSection(how="mask", low=0.1, high=3.0))
    # ratios 2 and 2 beyond 1.2: the clip binds with A > 0 only; the token of ratio 8 is left out
    assert gradient(Clipped(), section, [0] * 5) == pytest.approx([0, 0, 0, -1, 4])


def test_truncating_both_causes_at_one_cap_is_the_decoupled_loss():
    correction = CorrectionSection(high=3.0)
    section = LossSection(mismatch=correction, staleness=correction)
    behind = [0, 0, 3, 1, 0]
    assert gradient(Clipped(), section, behind) == pytest.approx(gradient(Decoupled(cap=3.0), LossSection(), behind))


def test_corrections_carry_no_gradient_of_their_own():
    logprobs, tokens = tokens_with([0] * 5)
    found, _ = corrected(logprobs, tokens, LossSection(mismatch=CorrectionSection(level="sequence")))
    assert not found.weight.requires_grad
    assert not found.behaviour_logprobs.requires_grad


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="not below"):
        CorrectionSection(low=2.0, high=1.0)
