"""A mixture of experts is published in the pieces of its files, though it is trained in fused ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.engine.forward import as_saved, by_layer, has_fused_experts, whole_shape
from tests.architectures import build


def test_experts_are_published_under_the_names_and_in_the_shapes_of_the_files(tmp_path: Path):
    directory = build("qwen3 moe", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert has_fused_experts(model)
    published, shapes = {}, {}
    for layer in by_layer(model.named_parameters()):
        whole = as_saved(model, {name: parameter.detach() for name, parameter in layer})
        meta = as_saved(model, {n: torch.empty(whole_shape(p), device="meta") for n, p in layer})
        assert list(whole) == list(meta), "the order in which a broadcast is announced"
        published |= whole
        shapes |= {name: tensor.shape for name, tensor in meta.items()}
    stored = load_file(directory / "model.safetensors")
    assert published.keys() == stored.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in stored.items())
    assert shapes == {name: tensor.shape for name, tensor in stored.items()}


def test_a_model_without_experts_is_published_as_it_is_trained(tmp_path: Path):
    assert not has_fused_experts(AutoModelForCausalLM.from_pretrained(build("llama", tmp_path / "model")))
