from typing import Any

import pytest
import torch

from cluster.config import LearnerSection, ScheduleSection
from learner.engine.optimizer import lr_at, make_optimizer


def test_warm_up_rises_to_the_full_rate_and_stays_there_without_decay():
    schedule = ScheduleSection(lr=1.0, warmup_steps=4)
    assert [lr_at(s, schedule, 100) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_decay_goes_from_the_full_rate_through_the_middle_to_the_floor(decay, middle):
    schedule = ScheduleSection(lr=1.0, warmup_steps=2, decay=decay, min_lr_frac=0.1)
    assert lr_at(2, schedule, 12) == pytest.approx(1.0)
    assert lr_at(7, schedule, 12) == pytest.approx(middle)
    assert lr_at(12, schedule, 12) == pytest.approx(0.1)
    assert lr_at(1000, schedule, 12) == pytest.approx(0.1)


def test_cosine_is_flat_at_its_ends_where_linear_is_not():
    cosine, linear = (ScheduleSection(lr=1.0, decay=d) for d in ("cosine", "linear"))
    assert lr_at(1, cosine, 10) == pytest.approx(0.975528, abs=1e-6)
    assert lr_at(1, linear, 10) == pytest.approx(0.9)


def step_with(gradient: list[float], **section) -> tuple[torch.Tensor, Any]:
    parameter = torch.nn.Parameter(torch.zeros(len(gradient)))
    optimizer = make_optimizer(
        [parameter], LearnerSection(optimizer="sgd", schedule=ScheduleSection(lr=1.0), **section), guarded=True
    )
    parameter.grad = torch.tensor(gradient)
    optimizer.step()
    return parameter.detach(), optimizer


def test_a_long_gradient_is_clipped_and_its_norm_before_that_is_told():
    parameter, optimizer = step_with([3.0, 4.0], clip_grad_norm=1.0)
    assert parameter.tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)
    assert optimizer.grad_norm == 5.0


def test_clipping_at_zero_is_off():
    assert step_with([3.0, 4.0], clip_grad_norm=0.0)[0].tolist() == [-3.0, -4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    parameter, optimizer = step_with([bad, 1.0])
    assert parameter.tolist() == [0.0, 0.0]
    assert optimizer.skipped
