"""Adapters inside the learner's model (LoRA, arXiv:2106.09685): which layers get one, by which names they travel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.config.learner import LoraSection
from cluster.errors import ConfigError

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."
"""What peft's files put before the names of a model's modules."""


def attach(model: Any, section: LoraSection, base: Path, seed: int) -> Any:
    """Freeze the model and put an adapter beside each target layer; returns peft's configuration of it.

    A is random and depends on `seed` alone, the same on every rank; B is zero, so the model is what it was.
    Raises ConfigError if no layer has such a name, or if one is an embedding or the output head.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = section.target_modules
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        base_model_name_or_path=str(base),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:
            raise ConfigError(f"learner.lora.target_modules = {targets!r} does not fit '{base}': {error}") from error
    for outer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(outer, BaseTunerLayer):
            raise ConfigError(
                f"learner.lora.target_modules = {targets!r} takes in the embedding or the output head, which may be "
                "one matrix and which engines do not adapt. Name other layers, or 'all-linear'."
            )
    return config


def is_adapter(name: str) -> bool:
    """Whether a parameter of the model belongs to an adapter."""
    return ".lora_" in name


def peft_name(name: str) -> str:
    """The name of an adapter's parameter in peft's files, which vLLM reads too."""
    return PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".")


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model is its frozen self."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def write(directory: Path, tensors: dict[str, Tensor], config: Any) -> None:
    """An adapter in peft's format: `PeftModel.from_pretrained` and vLLM load it."""
    config.save_pretrained(directory)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
