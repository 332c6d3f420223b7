"""Packed rows of a real model say what one sequence at a time says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cluster.config import LearnerSection
from learner import pack as packing
from learner.engine.forward import attach_row_selection, logprobs_of, max_positions, tied_head
from learner.pack import pack
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.models import random_llama

CPU = torch.device("cpu")


def statistics(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_softmax = logits.float().log_softmax(-1)
    return log_softmax.gather(-1, tokens[:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(-1)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> torch.nn.Module:
    directory = random_llama(tmp_path_factory.mktemp("model"), tied=True, scale=2.0)
    return AutoModelForCausalLM.from_pretrained(directory).train()


def alone(model, rollout) -> tuple[np.ndarray, np.ndarray]:
    """[T] log-probs and entropies, the plain way: one sequence, no packing, every position."""
    tokens = torch.as_tensor(rollout.tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1] / rollout.temperature
    chosen, entropy = statistics(logits, tokens[0, 1:])
    return np.concatenate([[0.0], chosen]), np.concatenate([[0.0], entropy])


def check_against_alone(model, section: LearnerSection, per_row: int, monkeypatch, temperature: float = 1.0) -> list:
    monkeypatch.setattr(packing, "SEQUENCES_PER_ROW", per_row)
    rng = np.random.default_rng(0)
    lengths = [[(int(p), int(r)) for p, r in rng.integers(1, 12, (6, 2))] for _ in range(4)]
    groups = random_groups(lengths, vocabulary=40, temperature=temperature)
    rollouts = [r for g in groups for r in g.rollouts]
    expected = [alone(model, r) for r in rollouts]
    select = attach_row_selection(model)
    micros = pack(groups, record_of(groups, random_rewards(groups)), section).micros
    num_trained = 0
    for micro in micros:
        with torch.no_grad():
            logprobs, entropy = logprobs_of(model, select, micro, CPU, statistics)
        for row, column in zip(*np.nonzero(micro.loss_mask), strict=True):
            number, position = micro.rollout[row, column], micro.positions[row, column]
            assert logprobs[row, column].item() == pytest.approx(expected[number][0][position], abs=1e-5)
            assert entropy[row, column].item() == pytest.approx(expected[number][1][position], abs=1e-5)
            num_trained += 1
        assert (logprobs[torch.from_numpy(~micro.loss_mask)] == 0).all()
    assert num_trained == sum(r.num_tokens for r in rollouts)
    return list(micros)


def test_several_sequences_in_each_of_several_rows_do_not_see_one_another(model, monkeypatch):
    micros = check_against_alone(model, LearnerSection(row_tokens=64), 5, monkeypatch)
    assert any(len(m.tokens) > 1 and (m.positions[:, 1:] == 0).any() for m in micros)


def test_one_long_row_of_everything(model, monkeypatch):
    micros = check_against_alone(model, LearnerSection(row_tokens=512), 1000, monkeypatch)
    assert [len(m.tokens) for m in micros] == [1]


def test_a_sequence_a_row_with_padding_and_no_mask(model, monkeypatch):
    micros = check_against_alone(model, LearnerSection(row_tokens=1), 1, monkeypatch)
    assert any((m.rollout < 0).any() for m in micros)


def test_log_probs_are_at_the_temperature_that_was_sampled_at(model, monkeypatch):
    check_against_alone(model, LearnerSection(row_tokens=64), 5, monkeypatch, temperature=0.6)


def test_rows_flattened_for_flash_attention_say_the_same(model, monkeypatch):
    monkeypatch.setattr("learner.engine.forward._flash", lambda model: True)
    check_against_alone(model, LearnerSection(row_tokens=64), 5, monkeypatch)


def test_what_is_in_the_padding_changes_no_log_prob(model):
    groups = random_groups([[(3, 9), (3, 2), (4, 5)]], vocabulary=40)
    record = record_of(groups, random_rewards(groups))
    (micro,) = pack(groups, record, LearnerSection(row_tokens=1)).micros
    select = attach_row_selection(model)
    with torch.no_grad():
        clean = logprobs_of(model, select, micro, CPU, statistics)[0]
        micro.tokens[micro.rollout < 0] = 17
        dirty = logprobs_of(model, select, micro, CPU, statistics)[0]
    assert torch.equal(clean, dirty)


def test_an_empty_micro_batch_reaches_every_parameter_with_a_gradient_of_zero(model):
    model.zero_grad()
    select = attach_row_selection(model)
    logprobs, _ = logprobs_of(model, select, packing._empty(), CPU, statistics)
    (logprobs * 0.0).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_the_output_head_still_answers_everywhere_afterwards(model):
    tokens = torch.arange(10)[None]
    before = model(input_ids=tokens).logits
    select = attach_row_selection(model)
    groups = random_groups([[(3, 9)]], vocabulary=40)
    micro = pack(groups, record_of(groups, random_rewards(groups)), LearnerSection()).micros[0]
    logprobs_of(model, select, micro, CPU, statistics)
    torch.testing.assert_close(model(input_ids=tokens).logits, before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_found_by_identity_and_not_by_name(tied):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.tie_word_embeddings = tied
    llama = LlamaForCausalLM(config)
    assert tied_head(llama) == (("lm_head.weight", "model.embed_tokens.weight") if tied else None)


def test_the_longest_sequence_is_read_from_the_configuration():
    from transformers import GPT2Config, LlamaConfig, MambaConfig

    assert max_positions(GPT2Config(n_positions=64)) == 64
    assert max_positions(LlamaConfig(max_position_embeddings=64)) == 64
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
    assert max_positions(LlamaConfig(max_position_embeddings=64, rope_parameters=scaled)) == 256
    assert max_positions(MambaConfig()) is None
