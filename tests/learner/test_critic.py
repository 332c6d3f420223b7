"""From a cut's rewards to advantages of single tokens, by hand; the whole step is compared in test_engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.config import LearnerSection, ValueSection, parse
from cluster.errors import ConfigError
from cluster.types import Group, MicroBatch, Rollout
from learner.advantages.estimators import Undivided
from learner.engine.forward import attach_row_selection
from learner.engine.value_head import ValueHead
from learner.losses.value_loss import Credited, credit
from learner.pack import pack, tokens_of
from tests.learner.groups import group, ppo_groups, record_of

PLAIN = ValueSection(gamma=0.5, lam=0.5, whiten=False)
VALUES = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
"""Value of a state by the last token read: VALUES[token]."""


@dataclass
class Table:
    """Values of the states after single tokens, and log-probs of single tokens."""

    values: torch.Tensor
    logprobs: torch.Tensor

    def logprobs_and_values(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(np.array(micro.tokens))
        values = torch.nn.functional.pad(self.values[tokens], (1, 0))
        return self.logprobs[tokens], torch.zeros(tokens.shape), values

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        return dict(values)


TABLE = Table(VALUES, -VALUES / 10)


def rollout(tokens: list[int], mask: list[int], **fields) -> Rollout:
    arrays = np.array(tokens, np.int32), np.array(mask, bool), np.zeros(len(tokens), np.float32)
    return Rollout(*arrays, **{"text": "", "turns": (), "spans": (), "finish": "stop", **fields})


def credited(
    groups: list[Group], rewards: list[list[float]], value: ValueSection, table: Table = TABLE, reference=None, **sizes
) -> tuple[Credited, dict[int, tuple[list[float], list[float]]]]:
    """The step's micro-batches, and by rollout the (advantages, returns) of its trained tokens."""
    section = LearnerSection(value=value, **sizes)
    batch = pack(groups, record_of(groups, [np.array(r) for r in rewards], Undivided()), section)
    references = [reference(m) if reference else None for m in batch.micros]
    found = credit(batch, value, table, references)
    by_rollout = {}
    for micro, target in zip(found.micros, found.targets, strict=True):
        for number in np.unique(micro.rollout[micro.loss_mask]):
            where = (micro.rollout == number) & micro.loss_mask
            by_rollout[int(number)] = micro.advantages[where].tolist(), target.returns[where].tolist()
    return found, by_rollout


def test_three_tokens_by_hand():
    """They are chosen where 1, 4 and 2 were read last: values 1, 4, 2; the reward 3 is the last token's."""
    _, found = credited([group(0, [rollout([0, 1, 4, 2, 5], [0, 0, 1, 1, 1])])], [[3.0]], PLAIN)
    # errors: 0 + ½·4 − 1 = 1, 0 + ½·2 − 4 = −3, 3 + 0 − 2 = 1; each adds a quarter of the next
    advantages = [1 + 0.25 * (-3 + 0.25), -3 + 0.25, 1.0]
    assert found[0][0] == pytest.approx(advantages)
    assert found[0][1] == pytest.approx([advantages[0] + 1, advantages[1] + 4, advantages[2] + 2])


def test_over_a_turn_the_next_value_is_read_after_the_environments_answer():
    """Trained are 4 and 5; between them the environment says 7 and 2, so 5 is chosen where 2 was read last."""
    _, found = credited([group(0, [rollout([1, 4, 7, 2, 5], [0, 1, 0, 0, 1])])], [[3.0]], PLAIN)
    last = 3.0 - 2
    assert found[0][0] == pytest.approx([0.5 * 2 - 1 + 0.25 * last, last])


def test_a_truncated_rollout_ends_there_unless_it_is_to_go_on_with_its_last_value():
    cut = [group(0, [rollout([1, 4, 6], [0, 1, 1], finish="length")])]
    whole = [group(0, [rollout([1, 4, 6], [0, 1, 1])])]
    (_, ended), (_, stopped) = credited(cut, [[3.0]], PLAIN), credited(whole, [[3.0]], PLAIN)
    assert ended == stopped
    bootstrapped = PLAIN.model_copy(update={"bootstrap_truncated": True})
    (_, on), (_, same) = credited(cut, [[3.0]], bootstrapped), credited(whole, [[3.0]], bootstrapped)
    assert same == stopped
    # the state after 6 is worth 6, half of it a token earlier
    assert on[0][0] == pytest.approx([ended[0][0][0] + 0.25 * 3, ended[0][0][1] + 3])


def test_the_divergence_is_taken_off_every_tokens_reward():
    section = ValueSection(gamma=1.0, lam=1.0, whiten=False, reward_kl_coef=0.5)
    groups = [group(0, [rollout([1, 4, 6], [0, 1, 1])])]
    still = Table(VALUES * 0, TABLE.logprobs)

    def reference(micro: MicroBatch) -> torch.Tensor:
        return torch.full(micro.tokens.shape, -1.0)

    _, found = credited(groups, [[3.0]], section, still, reference)
    # log-probs −0.4 and −0.6 against −1: half of 0.6 and of 0.4
    assert found[0][1] == pytest.approx([3 - 0.3 - 0.2, 3 - 0.2])
    assert credited(groups, [[3.0]], section, still)[1][0][1] == [3.0, 3.0]


def test_whitened_advantages_are_standard_scores_of_the_steps_tokens():
    groups = ppo_groups(0, vocabulary=8)
    rewards = [[0.0, 1.0, 0.5, 2.0], [1.0, 0.0, 0.0, 0.3]]
    sizes = {"row_tokens": 20, "micro_tokens": 24}
    white, _ = credited(groups, rewards, PLAIN.model_copy(update={"whiten": True}), **sizes)
    raw, _ = credited(groups, rewards, PLAIN, **sizes)
    assert len(raw.micros) > 1
    of_tokens = np.concatenate([m.advantages[m.loss_mask] for m in white.micros])
    plain = np.concatenate([m.advantages[m.loss_mask] for m in raw.micros])
    np.testing.assert_allclose(of_tokens, (plain - plain.mean()) / plain.std(ddof=1), atol=1e-6)
    assert not any(m.advantages[~m.loss_mask].any() for m in white.micros)
    for a, b in zip(white.targets, raw.targets, strict=True):
        np.testing.assert_array_equal(a.returns, b.returns)


def test_a_single_token_is_not_whitened():
    _, found = credited([group(0, [rollout([1, 4], [0, 1])])], [[3.0]], ValueSection())
    assert found[0][0] == [2.0]


def test_explained_variance_is_that_of_the_returns():
    groups, rewards = ppo_groups(1, vocabulary=8), [[0.0, 1.0, 0.5, 2.0], [1.0, 0.0, 0.0, 0.3]]
    found, _ = credited(groups, rewards, PLAIN, micro_tokens=24)
    masks = [m.loss_mask for m in found.micros]
    returns = np.concatenate([t.returns[m] for t, m in zip(found.targets, masks, strict=True)])
    values = np.concatenate([t.old_values[m] for t, m in zip(found.targets, masks, strict=True)])
    assert found.metrics["value/explained_variance"] == pytest.approx(1 - (returns - values).var() / returns.var())
    assert found.metrics["value/mean"] == pytest.approx(values.mean())
    assert found.metrics["value/return_mean"] == pytest.approx(returns.mean())
    perfect = credited([group(0, [rollout([3, 3, 3], [0, 1, 1])])], [[3.0]], ValueSection(whiten=False))[0].metrics
    assert "value/explained_variance" not in perfect, "equal returns have no variance to explain"


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 200), st.booleans(), st.integers(0, 3))
def test_rows_and_micro_batches_leave_advantages_and_returns_alone(row_tokens, micro_tokens, bootstrap, seed):
    value = ValueSection(gamma=0.9, lam=0.8, bootstrap_truncated=bootstrap)
    groups, rewards = ppo_groups(seed, vocabulary=8), [[0.0, 1.0, 0.5, 2.0], [1.0, 0.0, 0.0, 0.3]]
    plain, expected = credited(groups, rewards, value, row_tokens=1, micro_tokens=1)
    other, found = credited(groups, rewards, value, row_tokens=row_tokens, micro_tokens=micro_tokens)
    assert found.keys() == expected.keys()
    for number, columns in expected.items():
        for a, b in zip(found[number], columns, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert other.metrics == pytest.approx(plain.metrics)


def test_a_value_that_is_not_finite_spoils_the_step_and_raises_nothing():
    """On one rank alone an error would leave the others in a collective; a gradient of NaN is skipped on all."""
    broken = Table(VALUES.clone().index_fill(0, torch.tensor([4]), float("nan")), TABLE.logprobs)
    groups = [group(0, [rollout([1, 4, 6], [0, 1, 1]), rollout([1, 2], [0, 1])])]
    found, _ = credited(groups, [[1.0, 0.0]], ValueSection(), broken)
    assert all(np.isnan(m.advantages[m.loss_mask]).all() for m in found.micros)


def test_the_value_loss_has_its_coefficient_and_nothing_of_untrained_tokens():
    value = ValueSection(coef=0.25, clip=None, whiten=False)
    found, _ = credited([group(0, [rollout([1, 4, 6], [0, 1, 1])])], [[3.0]], value)
    tokens = tokens_of(found.micros[0], "token")
    values = torch.full((1, 4), 9.0, requires_grad=True)
    loss, metrics = found.value_loss(0, values, tokens)
    (returns,) = found.targets[0].returns
    expected = ((9 - returns[1:]) ** 2).sum() / 2
    assert metrics["loss/value"].item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(0.25 * expected)
    loss.backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, *(0.25 * (9 - returns[1:])), 0.0])


def test_the_head_values_every_state_whatever_positions_have_logits():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    select = attach_row_selection(policy)
    model = ValueHead(policy)
    groups = [group(0, [rollout([1, 4, 6], [0, 0, 1])])]
    (micro,) = pack(groups, record_of(groups, [np.array([1.0])], Undivided()), LearnerSection()).micros
    select.index = torch.tensor([1])
    logits = model(input_ids=torch.from_numpy(micro.tokens)).logits
    assert logits.shape == (1, 1, 8)
    assert model.values(micro).tolist() == [[0.0] * 4], "a head starts at 0"
    torch.nn.init.normal_(model.value_head.weight)
    model(input_ids=torch.from_numpy(micro.tokens))
    select.index = None
    hidden = policy(input_ids=torch.from_numpy(micro.tokens), output_hidden_states=True).hidden_states[-1][0]
    expected = torch.nn.functional.linear(hidden, model.value_head.weight, model.value_head.bias)[:, 0]
    torch.testing.assert_close(model.values(micro)[0], torch.cat([torch.zeros(1), expected]))


def test_a_critic_takes_the_place_of_another_advantage():
    learner = {"value": {}, "drop_zero_variance": False}
    settings = parse({"learner": learner, "rollout": {"group_size": 1}})
    assert settings.learner.value == ValueSection()
    with pytest.raises(ConfigError, match="take its place"):
        parse({"learner": learner | {"advantage": {"use": "leave_one_out"}}})


def test_either_divergence_needs_the_reference():
    assert not LearnerSection(value=ValueSection()).reads_reference
    assert LearnerSection(value=ValueSection(reward_kl_coef=0.1)).reads_reference


def test_one_group_of_rewards_reaches_its_own_rollouts():
    groups = [group(0, [rollout([1, 4], [0, 1]), rollout([1, 4], [0, 1])]), group(1, [rollout([2, 4], [0, 1])])]
    unknown = replace(groups[0].rollouts[0], finish="length")
    groups[0] = replace(groups[0], rollouts=(unknown, groups[0].rollouts[1]))
    _, found = credited(groups, [[float("nan"), 5.0], [7.0]], PLAIN)
    assert {n: r for n, (_, r) in found.items()} == {0: [5.0], 1: [7.0]}
