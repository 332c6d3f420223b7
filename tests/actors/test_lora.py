"""The real engine with adapters: new ones under running generations."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from actors.adapter import VLLM_RANKS, AdapterFolder, room_for
from actors.engine import VllmEngine
from cluster.config import LoraSection, parse
from cluster.types import Publication
from tests.actors.test_engine import logprobs_under
from tests.models import random_llama

CONFIG = parse(
    {
        "engine": {"max_model_len": 448, "max_num_seqs": 32, "kv_cache_gib": 0.25},
        "learner": {"lora": {"rank": 4, "alpha": 8}},
    }
)


def adapters_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """As a learner publishes them."""
    return {n.replace(".default.", "."): p.detach() for n, p in model.named_parameters() if "lora_" in n}


def shuffle(model: PeftModel, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.engine
async def test_every_version_span_has_the_logprobs_of_its_adapter(tmp_path):
    base = random_llama(tmp_path / "model", tied=True, scale=2.0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    ).eval()
    engine = VllmEngine(base, CONFIG, stop_tokens=[2], version="0.0")
    await engine.start()
    adapters = {"0.0": {k: v.clone() for k, v in adapters_of(model).items()}}
    prompts = [np.random.default_rng(i).integers(3, 40, 300).tolist() for i in range(24)]
    generator, samples, done = torch.Generator().manual_seed(1), [], False

    async def one(prompt: list[int]) -> None:
        while not done:
            samples.append((prompt, await engine.sample(prompt, max_tokens=100, temperature=1.0)))

    running = [asyncio.create_task(one(p)) for p in prompts]
    for step in range(1, 9):
        await asyncio.sleep(0.5)
        shuffle(model, generator)
        publication = Publication("policy", 1, step)
        adapters[publication.version] = {k: v.clone() for k, v in adapters_of(model).items()}
        save_file(adapters[publication.version], tmp_path / f"{step}.safetensors")
        await engine.update(publication, str(tmp_path / f"{step}.safetensors"))
    done = True
    await asyncio.gather(*running)
    await engine.close()

    apart: dict[str, float] = {}
    checked = dict.fromkeys(adapters, 0)
    parameters = dict(model.named_parameters())
    for version, weights in adapters.items():
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name.replace(".weight", ".default.weight")].copy_(tensor)
        for prompt, sample in samples:
            for span in sample.spans:
                if span.version == version and checked[version] < 12:
                    checked[version] += 1
                    expected = logprobs_under(model, [*prompt, *sample.tokens])[len(prompt) - 1 :]
                    difference = np.abs(expected - sample.logprobs)[span.start : span.end].max()
                    apart[version] = max(apart.get(version, 0.0), float(difference))
    assert sum(len(sample.spans) > 1 for _, sample in samples) >= 8, "hardly any generation saw an update"
    assert len(apart) >= 8, "hardly any version was sampled with"
    assert max(apart.values()) < 1e-3, apart


def test_a_folder_keeps_its_path_while_its_weights_change(tmp_path):
    base = random_llama(tmp_path / "model", tied=False)
    folder = AdapterFolder(LoraSection(rank=4, alpha=8, target_modules=("q_proj",)), base)
    told = json.loads((folder.path / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["target_modules"]) == (4, 8, ["q_proj"])
    assert folder.arguments["lora_target_modules"] == ["q_proj"]
    first = load_file(folder.path / "adapter_model.safetensors")
    assert len(first) == 2 * 2, "A and B of one matrix in each of two layers"
    assert not any(tensor.any() for tensor in first.values())
    for value in (1.0, 2.0):
        save_file({"w": torch.full((2,), value)}, tmp_path / "new.safetensors")
        folder.hold(str(tmp_path / "new.safetensors"))
        assert load_file(folder.path / "adapter_model.safetensors")["w"][0] == value
    folder.close()
    assert not folder.path.exists()
    assert (tmp_path / "new.safetensors").exists(), "it belongs to whoever published it"


@pytest.mark.parametrize("targets", ["all-linear", ("o_proj", "mlp.down_proj")])
def test_an_engine_begins_with_the_names_and_shapes_that_a_learner_publishes(tmp_path, targets):
    base = random_llama(tmp_path / "model", tied=False)
    chosen = targets if isinstance(targets, str) else list(targets)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=chosen))
    folder = AdapterFolder(LoraSection(rank=4, target_modules=targets), base)
    first = load_file(folder.path / "adapter_model.safetensors")
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in adapters_of(model).items()}
    assert not any("lm_head" in name for name in first)


def test_there_is_room_for_every_rank_a_recipe_may_ask_for():
    from typing import get_args

    lora = pytest.importorskip("vllm.config.lora")
    assert get_args(lora.MaxLoRARanks) == VLLM_RANKS
    ranks = range(1, 513)
    assert all(room_for(rank) >= rank for rank in ranks)
