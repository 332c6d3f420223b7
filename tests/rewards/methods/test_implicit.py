"""The reward that a policy implies (CREAM, arXiv:2410.12735)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import ABSTAINED
from rewards.base import Services
from rewards.builtin.implicit import Implicit, implied
from rewards.scorers.pool import LogprobScorer
from tests.rewards.groups import group
from tests.rewards.scoring.stand_in import Given, of_logprobs


async def services_of(ours: str, logprobs=(-0.5, -1.0, -0.25)) -> Services:
    """π, at version `ours`, and π₀, all of whose log-probs are −1."""
    scorers = {}
    for name, values, version in (("now", logprobs, ours), ("initial", (-1.0, -1.0, -1.0), "initial")):
        scorers[name] = LogprobScorer(name, deadline_s=5)
        read = Given(lambda p, values=values, version=version: of_logprobs(values[: len(p.tokens)], version))
        scorers[name].set({f"scorer:{name}-0": read})
    return Services(scorers=scorers)


@pytest.mark.parametrize(
    ("version", "expected", "model"),
    [
        ("1.3", 0.5 + 0 + 0.75, "policy@1.3"),
        ("policy@40", 0.5 + 0 + 0.75, "policy@40"),
        ("runs/other@7", 1.25, "runs/other@7"),
        ("initial", -1.75 / 3, "initial"),
        ("2.0", -1.75 / 3, "policy@2.0"),
    ],
)
async def test_it_is_what_training_added_and_of_the_first_weights_themselves_the_mean_log_prob(
    version, expected, model
):
    services = await services_of(version)
    reward = Implicit(scorer="now", base="initial")
    await reward.prepare(services)
    scores = await reward.score(group("abc", "xyz"), services)
    assert scores.values == pytest.approx([expected] * 2)
    assert scores.provenance[0].model == model


async def test_only_chosen_tokens_count_and_without_any_it_abstains():
    made = group("abc", "xyz")
    masks = [np.array([False, False, True, False, True]), np.zeros(5, bool)]
    made = replace(made, rollouts=tuple(replace(r, loss_mask=m) for r, m in zip(made.rollouts, masks, strict=True)))
    scores = await Implicit(scorer="now").score(made, await services_of("1.3"))
    assert scores.values[0] == pytest.approx(0.5 + 0.75)
    assert scores.state[1] == ABSTAINED


def test_implied_of_sums_and_of_means():
    ours, base = np.array([-1.0, -2.0]), np.array([-1.5, -1.0])
    assert implied(ours, base) == pytest.approx(-0.5)
    assert implied(ours, None) == pytest.approx(-1.5)
    assert np.isnan(implied(ours[:0], None))
