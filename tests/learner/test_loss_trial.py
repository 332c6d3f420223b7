"""A recipe's own loss and environment are tried before anything starts, and what is wrong is said of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from actors.environments import End, Environment, Observation
from cluster.config import LossSection, parse
from cluster.driver.preflight_plugins import plugins
from cluster.errors import ConfigError
from learner.losses.loss_trial import try_loss
from learner.losses.policy_losses import LOSSES, PolicyLoss, objective
from learner.pack import TokenBatch


class Named(PolicyLoss):
    def loss(self, logprobs, tokens):
        rare = (logprobs.detach() < -1) & tokens.loss_mask
        return -(tokens.advantages * logprobs * tokens.weight).sum(), {"rare_frac": rare.sum(), "mine/rare": rare.sum()}


class MissingField(PolicyLoss):
    def loss(self, logprobs, tokens):
        return (logprobs * tokens.old_advantages).sum(), {}


class NoMetrics(PolicyLoss):
    def loss(self, logprobs, tokens):
        return (logprobs * tokens.advantages).sum()


class Mean(PolicyLoss):
    def loss(self, logprobs, tokens):
        return logprobs * tokens.advantages, {}


class Detached(PolicyLoss):
    def loss(self, logprobs, tokens):
        with torch.no_grad():
            return (logprobs * tokens.advantages).sum(), {}


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (MissingField, "AttributeError.*old_advantages"),
        (NoMetrics, r"Return \(sum over tokens"),
        (Mean, r"of shape \[2, 4\]"),
        (Detached, "no gradient"),
    ],
)
def test_a_loss_that_cannot_work_is_refused_with_what_is_wrong(loss, said):
    with pytest.raises(ConfigError, match=said):
        try_loss(loss(), LossSection(use=f"mine:{loss.__name__}", coef=0.0, entropy_coef=0.1))


@pytest.mark.parametrize("name", [*LOSSES, "named"])
def test_every_loss_of_ours_passes(name):
    try_loss(LOSSES.get(name, Named)(), LossSection(use="mine:Loss", kl_coef=0.1))


class Generator(Environment):
    def play(self, task, variant):  # pyright: ignore[reportIncompatibleMethodOverride]
        yield Observation.of("hello")


class Coroutine(Environment):
    async def play(self, task, variant):  # pyright: ignore[reportIncompatibleMethodOverride]
        return End(reward=1.0)


class Delegating(Environment):
    def play(self, task, variant):
        return self._turns(task)

    async def _turns(self, task):
        yield Observation.of("hello")


def settings(**changes: Mapping[str, Any]):
    return parse({"rewards": [{"use": "exact"}], **changes})


def test_metrics_without_an_area_are_the_losses():
    logprobs = torch.tensor([[0.0, -2.0, -0.5]], requires_grad=True)
    mask = torch.tensor([[False, True, True]])
    none = torch.zeros(1, 3, dtype=torch.int32)
    tokens = TokenBatch(mask, mask.float(), torch.zeros(1, 3), torch.ones(1, 3), none, none)
    _, metrics = objective(Named(), LossSection(use="mine:Named"), logprobs, torch.zeros(1, 3), tokens)
    assert metrics["loss/rare_frac"] == metrics["mine/rare"] == 1
    assert "rare_frac" not in metrics


@pytest.mark.parametrize("name", ["Generator", "Coroutine"])
def test_an_environment_that_is_no_asynchronous_generator_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}.play is no asynchronous generator"):
        plugins(settings(rollout={"environment": {"use": f"{__name__}:{name}"}}))


def test_an_environment_whose_play_returns_a_generator_passes():
    plugins(settings(rollout={"environment": {"use": f"{__name__}:Delegating"}}))


def test_a_loss_of_a_recipe_is_tried():
    with pytest.raises(ConfigError, match="old_advantages"):
        plugins(settings(learner={"loss": {"use": f"{__name__}:MissingField"}}))


def test_a_file_is_no_loss():
    with pytest.raises(ConfigError, match=r"'mine\.losses:Damped'"):
        plugins(settings(learner={"loss": {"use": "mine/losses.py:Damped"}}))
