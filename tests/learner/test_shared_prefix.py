"""Shared prefixes: trees hold every sequence once, and the model computes them as it computes rows."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import LearnerSection, LossSection
from cluster.types import Group
from learner.engine.forward import attach_row_selection, logprobs_of, token_statistics, tree_mask
from learner.engine.trees import why_not_trees
from learner.losses.policy_losses import LOSSES, objective
from learner.pack import mini_batches, pack, tokens_of
from learner.shared_prefix import shared_rows, tree_rows
from tests.learner.groups import group, ppo_groups, random_groups, random_rewards, record_of, with_common_prompts
from tests.learner.test_pack import unpacked
from tests.models import random_llama

VOCABULARY = 40
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)
"""Of three tokens, so that many begin alike."""


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.integers(1, 30))
def test_each_token_attends_to_those_that_lead_to_it(lists, capacity):
    sequences = [np.array(tokens) for tokens in lists]
    seen = []
    for tree in tree_rows(sequences, range(len(sequences)), capacity):
        assert len(tree.tokens) <= max(capacity, *(len(sequences[n]) for n in tree.paths))
        mask = tree_mask(torch.tensor(tree.ends)[None])[0, 0].numpy()
        for number, path in tree.paths.items():
            seen.append(number)
            np.testing.assert_array_equal(tree.tokens[path], sequences[number])
            np.testing.assert_array_equal(tree.positions[path], np.arange(len(path)))
            for place, column in enumerate(path):
                np.testing.assert_array_equal(np.flatnonzero(mask[column]), path[: place + 1])
        of_tree = {tuple(sequences[n][: i + 1]) for n in tree.paths for i in range(len(sequences[n]))}
        assert len(tree.tokens) == len(of_tree), "a prefix is computed twice"
    assert sorted(seen) == list(range(len(sequences)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(8, 80),
    st.integers(1, 3),
)
def test_every_rollout_is_packed_once_and_found_in_its_tree(lengths, micro_tokens, world):
    groups = with_common_prompts(random_groups(lengths, vocabulary=3))
    record = record_of(groups, random_rewards(groups))
    section = LearnerSection(micro_tokens=micro_tokens, packing="shared_prefix")
    batches = [pack(groups, record, section, rank, world, shares=True) for rank in range(world)]
    plain = [pack(groups, record, section)]
    found, expected = unpacked(batches), unpacked(plain)
    assert found.keys() == expected.keys()
    for number, columns in expected.items():
        for one, other in zip(found[number], columns, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len({len(b.micros) for b in batches}) == 1, "ranks run different numbers of micro-batches"
    for micro in (m for b in batches for m in b.micros if m.loss_mask.any()):
        assert micro.shared is not None
        trees, used = micro.shared, micro.rollout >= 0
        np.testing.assert_array_equal(trees.tokens.flatten()[trees.place[used]], micro.tokens[used])
        np.testing.assert_array_equal(trees.positions.flatten()[trees.place[used]], micro.positions[used])
        assert trees.tokens.size <= max(micro_tokens, trees.tokens.shape[1])


def test_auto_shares_where_it_costs_less():
    def shared(prompt: int, response: int) -> bool:
        groups = with_common_prompts(random_groups([[(prompt, response)] * 8] * 4))
        (batch,) = mini_batches(groups, record_of(groups, random_rewards(groups)), LearnerSection(), shares=True)
        return any(m.shared is not None for m in batch.micros)

    assert shared(60, 16)
    assert shared(256, 32)
    assert not shared(2, 400), "the mask costs more than two tokens of a prompt save"


def test_an_engine_that_cannot_share_has_rows():
    groups = with_common_prompts(random_groups([[(60, 16)] * 8]))
    batch = pack(groups, record_of(groups, random_rewards(groups)), LearnerSection(packing="shared_prefix"))
    assert all(m.shared is None for m in batch.micros)
    assert batch.metrics["learner/shared_frac"] == 0


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    directory = random_llama(tmp_path_factory.mktemp("llama"), tied=True, scale=2.0)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, attach_row_selection(model)


def groups_of_all_kinds() -> list[Group]:
    """One turn, several turns that part late, equal rollouts, and rollouts that have nothing in common."""
    single = with_common_prompts(random_groups([[(20, 5), (20, 3), (20, 9)]], vocabulary=VOCABULARY, temperature=0.7))
    turns = with_common_prompts(ppo_groups(0))
    late = turns[0].rollouts[2]
    parted = [replace(late, tokens=np.concatenate([late.tokens[:9], (late.tokens[9:] + i) % 40])) for i in (0, 1, 1)]
    rng_groups = random_groups([[(4, 6), (3, 2)]], vocabulary=VOCABULARY)
    rollouts = [g.rollouts for g in (*single, *turns, *rng_groups)] + [tuple(parted)]
    return [group(i, r) for i, r in enumerate(rollouts)]


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_rows(llama, name, aggregate):
    model, select = llama
    groups = groups_of_all_kinds()
    record = record_of(groups, random_rewards(groups))
    loss_section = LossSection(aggregate=aggregate, kl_coef=0.1, entropy_coef=0.01)
    statistics = partial(token_statistics, entropy_grad=True)
    # `clipped_covariance` depends on the split: one micro-batch.
    section = LearnerSection(packing="shared_prefix", micro_tokens=4096 if name == "clipped_covariance" else 128)

    def loss_and_gradient(shares: bool):
        model.zero_grad()
        batch, total = pack(groups, record, section, shares=shares), 0.0
        for micro in batch.micros:
            logprobs, entropy = logprobs_of(model, select, micro, torch.device("cpu"), statistics)
            reference = logprobs.detach() - 0.1 * torch.from_numpy(micro.loss_mask)
            tokens = tokens_of(micro, aggregate, reference_logprobs=reference)
            loss, _ = objective(LOSSES[name](), loss_section, logprobs, entropy, tokens)
            (loss / batch.num_tokens).backward()
            total += float(loss.detach()) / batch.num_tokens
        assert any(m.shared is not None for m in batch.micros) == shares
        return total, {n: p.grad.clone() for n, p in model.named_parameters()}

    (expected, gradient), (found, shared_gradient) = loss_and_gradient(False), loss_and_gradient(True)
    assert found == pytest.approx(expected, abs=1e-5)
    longest = max(float(g.abs().max()) for g in gradient.values())
    assert longest > 1e-3
    for parameter, expected_gradient in gradient.items():
        torch.testing.assert_close(
            shared_gradient[parameter], expected_gradient, atol=1e-5 * max(1, longest), rtol=1e-5
        )


def test_a_long_prompt_splits_into_trees_of_the_same_gradient():
    sequences = [np.concatenate([np.arange(30), np.full(300, i)]) for i in range(8)]
    trees = list(tree_rows(sequences, range(8), 10_000))
    assert len(trees) > 1
    assert all(len(tree.tokens) < 30 + 300 * 8 for tree in trees)
    rows = shared_rows(trees)
    np.testing.assert_array_equal(rows.tokens.flatten()[rows.place], np.stack(sequences))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mistral", "mamba", "bloom"])
def test_only_models_whose_attention_takes_a_mask_share(kind):
    import transformers

    small: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
    configs = {
        "llama": lambda: transformers.LlamaConfig(**small, **heads),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64),
        "qwen2": lambda: transformers.Qwen2Config(**small, **heads),
        "mistral": lambda: transformers.MistralConfig(**small, **heads, sliding_window=16),
        "mamba": lambda: transformers.MambaConfig(**small),
        "bloom": lambda: transformers.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=2),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[kind]()).eval()
    select = attach_row_selection(model)

    @torch.no_grad()
    def logprobs(micro):
        statistics = partial(token_statistics, entropy_grad=False)
        return logprobs_of(model, select, micro, torch.device("cpu"), statistics)[0]

    why = why_not_trees(model.config, logprobs, 40)
    assert (why == "") == (kind in ("llama", "gpt2", "qwen2")), why
