"""A model directory with which every start would fail is refused in one line before anything starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.config import parse
from cluster.driver import preflight
from cluster.errors import ConfigError
from tests.models import random_llama


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def checked(model: Path) -> list[str]:
    return preflight.model(parse({"model": {"path": str(model)}}), [], online=False)


def configuration(**changes: object) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        file = model / "config.json"
        tree = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors")

    return apply


def cut(name: str, share: float) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(
        (model / name).read_bytes()[: int((model / name).stat().st_size * share)]
    )


def text(name: str, said: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(said)


HEAD = "lm_head.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda model: (model / "config.json").unlink(), "has no config.json"),
    "a cut configuration": (cut("config.json", 0.5), "config.json' is damaged"),
    "an empty configuration": (cut("config.json", 0), "config.json' is damaged"),
    "a configuration of binary": (lambda m: (m / "config.json").write_bytes(b"\x80\0\xff"), "config.json' is damaged"),
    "a nested configuration": (text("config.json", "[" * 100_000), "config.json' is damaged"),
    "a list for a configuration": (text("config.json", "[1]"), "names no model_type"),
    "no model type": (configuration(model_type=None), "names no model_type"),
    "an unknown architecture": (configuration(model_type="llamma"), "model_type 'llamma'.*Did you mean 'llama'"),
    "an architecture without a language model": (configuration(model_type="vit"), "model_type 'vit'"),
    "code of its own": (configuration(model_type="mine", auto_map={"AutoConfig": "x.Y"}), "model_type 'mine'"),
    "a size that is a text": (configuration(hidden_size="large"), "no configuration of a 'llama'"),
    "a quantised model": (configuration(quantization_config={"quant_method": "awq"}), r"quantised \(awq\)"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "lacks weights"),
    "cut weights": (cut("model.safetensors", 0.7), "model.safetensors' is not whole"),
    "a cut header": (cut("model.safetensors", 0.001), "model.safetensors' cannot be read|is not whole"),
    "empty weights": (cut("model.safetensors", 0), "model.safetensors' is not whole"),
    "weights of text": (
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors'",
    ),
    "weights in bytes": (weights(lambda t: t.update(x=t[HEAD].to(torch.int8))), "x as I8, and quantised"),
    "weights in eight bits": (weights(lambda t: t.update({HEAD: t[HEAD].to(torch.float8_e4m3fn)})), "quantised"),
    "another vocabulary": (weights(lambda t: t.update({HEAD: t[HEAD][:9].clone()})), "has 9 rows, and vocab_size"),
    "a damaged index": (text("model.safetensors.index.json", "{"), "index.json' is damaged"),
    "an index of another shape": (text("model.safetensors.index.json", '{"weight_map": 3}'), "index.json' is damaged"),
    "an index of missing files": (text("model.safetensors.index.json", '{"weight_map": {"a": "b"}}'), "lacks weights"),
    "another tokenizer": (configuration(vocab_size=20), "tokenizer .* does not fit the model: .* id 20"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "tokenizer"),
}


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv", "jamba", "qwen3_next", "recurrent_gemma", "bloom", "mpt"])
def test_an_architecture_whose_sequences_cannot_share_a_row_is_refused(model: Path, kind: str):
    AutoConfig.for_model(kind).save_pretrained(model)
    with pytest.raises(ConfigError, match=rf"model\.path.*is a '{kind}', which cannot be trained"):
        checked(model)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_would_fail_at_every_start_is_refused_in_one_line(model: Path, damage: str):
    make, words = DAMAGE[damage]
    make(model)
    with pytest.raises(ConfigError, match=rf"model\.path.*(?:{words})") as refused:
        checked(model)
    assert "\n" not in str(refused.value)
    assert str(model) in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: None,
        weights(lambda t: t.update(positions=torch.arange(3))),
        weights(lambda t: t.update({k: v.to(torch.bfloat16) for k, v in t.items()})),
        configuration(torch_dtype="bfloat16"),
        text("generation_config.json", '{"temperature": 0.6, "top_p": 0.9}'),
    ],
)
def test_what_can_be_trained_is_not_refused(model: Path, change: Callable[[Path], object]):
    change(model)
    assert checked(model) == []
    AutoModelForCausalLM.from_pretrained(model)
