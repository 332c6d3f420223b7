"""The policy's own dropout: off while training, unless the recipe keeps it."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from learner.engine.deepspeed_engine import turn_off_dropout

SMALL = {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
LLAMA = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def outputs(model):
    ids = torch.arange(16)[None]
    with torch.no_grad():
        return model.train()(ids).logits.log_softmax(-1), model.eval()(ids).logits.log_softmax(-1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_log_probs_while_training_equal_those_of_evaluation(kind, attention):
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**SMALL, attn_implementation=attention))
    else:
        model = LlamaForCausalLM(LlamaConfig(**LLAMA, attention_dropout=0.3, attn_implementation=attention))
    before_train, before_eval = outputs(model)
    assert not torch.allclose(before_train, before_eval)
    turn_off_dropout(model)
    train, evaluated = outputs(model)
    torch.testing.assert_close(train, evaluated)
