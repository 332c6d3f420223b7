"""What a model's files must hold is found before the first step, and what training does not use does not end it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.models import load_tokenizer
from cluster.config import ModelSection
from cluster.errors import ConfigError
from learner.engine.forward import use_savable_generation_config
from tests.models import random_llama


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.mark.parametrize(
    "odd",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 1, "eos_token_id": [2, 5]},
        {"temperature": 0.2},
        {"top_p": 0.5, "min_p": 0.1},
        {"do_sample": False, "typical_p": 0.4},
        {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
    ],
)
def test_a_model_whose_generation_configuration_cannot_be_written_is_saved(model: Path, tmp_path: Path, odd: dict):
    (model / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2} | odd))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    use_savable_generation_config(loaded)
    loaded.save_pretrained(tmp_path / "saved")
    assert loaded.generation_config.eos_token_id == odd.get("eos_token_id", 2)


def test_a_generation_configuration_that_can_be_written_is_left_as_it_is(model: Path):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    before = loaded.generation_config
    assert not use_savable_generation_config(loaded)
    assert loaded.generation_config is before


@pytest.mark.parametrize("damage", ["removed", "empty", "truncated", "configuration alone"])
def test_a_directory_without_a_usable_tokenizer_is_refused_before_anything_starts(model: Path, damage: str):
    vocabulary = model / "tokenizer.json"
    if damage == "removed":
        for file in model.glob("tokenizer*"):
            file.unlink()
    elif damage == "empty":
        vocabulary.write_text("")
    elif damage == "truncated":
        vocabulary.write_text(vocabulary.read_text()[:200])
    else:
        vocabulary.unlink()
    with pytest.raises(ConfigError, match=r"model\.path: .*tokenizer") as refused:
        load_tokenizer(ModelSection(path=str(model)), 0, online=False)
    assert "\n" not in str(refused.value)
