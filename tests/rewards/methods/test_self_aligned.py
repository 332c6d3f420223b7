"""SAR (arXiv:2509.05489): the acceptance numbers, and what is read twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import ABSTAINED, Message
from rewards.builtin.self_aligned import SelfAligned, self_aligned
from tests.rewards.groups import group
from tests.rewards.scoring.stand_in import of_logprobs, services_with


def test_the_share_of_the_perplexity_that_the_question_removes():
    with_query, without = np.array([-0.2, -np.log(10), -1.0]), np.array([-0.7, -np.log(2), -1.0])
    assert np.exp(-with_query[0]) == pytest.approx(1.221403, abs=1e-6)
    assert np.exp(-without[0]) == pytest.approx(2.013753, abs=1e-6)
    found = self_aligned(with_query, without)
    assert found == pytest.approx([0.393469, -1.0, 0.0], abs=1e-6)
    assert 1.0 + 0.2 * found[0] == pytest.approx(1.078694, abs=1e-6)
    assert 0.0 + 0.2 * found[1] == pytest.approx(-0.2, abs=1e-6)


def read(passage):
    return of_logprobs([-0.1, -0.2, -0.3] if isinstance(passage.prompt, np.ndarray) else [-1.0, -0.5, -0.6])


async def test_a_rollout_is_read_behind_its_prompt_and_behind_one_without_the_question():
    made = group("abc", "xyz")
    variants = {"orig": (Message("system", "Be brief."), Message("user", "47+38="))}
    made = replace(made, task=replace(made.task, variants=variants))
    services, replica = await services_with(read)
    scores = await SelfAligned().score(made, services)
    assert scores.values == pytest.approx([0.393469] * 2, abs=1e-6)
    assert scores.provenance[0].model == "policy@1.3"
    (asked,) = replica.asked
    assert len(asked) == 4, "one request, so one version of the weights"
    assert [p.prompt.tolist() for p in asked[:2]] == [[0, 1]] * 2
    assert [p.prompt for p in asked[2:]] == [(Message("system", "Be brief."), Message("user", ""))] * 2
    assert all(p.tokens.tolist() == [2, 3, 4] for p in asked)


async def test_only_the_tokens_of_the_policy_count_and_without_any_it_abstains():
    made = group("abc", "xyz")
    masks = [np.array([False, False, True, False, True]), np.zeros(5, bool)]
    made = replace(made, rollouts=tuple(replace(r, loss_mask=m) for r, m in zip(made.rollouts, masks, strict=True)))
    services, _ = await services_with(read)
    scores = await SelfAligned().score(made, services)
    assert scores.values[0] == pytest.approx(1 - np.exp(-0.8 + 0.2), abs=1e-6)
    assert scores.state[1] == ABSTAINED


async def test_a_task_without_a_question_has_nothing_to_leave_out():
    made = group("abc")
    made = replace(made, task=replace(made.task, variants={"orig": (Message("system", "Tell me."),)}))
    services, replica = await services_with(read)
    assert (await SelfAligned().score(made, services)).state.tolist() == [ABSTAINED]
    assert not replica.asked
