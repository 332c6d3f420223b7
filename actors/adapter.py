"""An adapter as vLLM reads one: a directory in peft's format, whose weights are the newest published file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cluster.config.learner import LoraSection

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for (`MaxLoRARanks` in vllm/config/lora.py, 0.32)."""


def room_for(rank: int) -> int:
    """The smallest rank that vLLM offers and the adapter fits into."""
    return next(offered for offered in VLLM_RANKS if offered >= rank)


def layers_of(section: LoraSection, model_dir: str | Path) -> dict[str, tuple[int, int]]:
    """Names of the layers that have an adapter, with the shape [out, in] of their weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))
    head, targets = model.get_output_embeddings(), section.target_modules

    def adapted(name: str, module: Any) -> bool:
        if targets == "all-linear":
            return module is not head
        return any(name == target or name.endswith(f".{target}") for target in targets)

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return {name: (m.out_features, m.in_features) for name, m in linear if adapted(name, m)}


class AdapterFolder:
    """Its path stays, so that a request under way needs not be told of a new version."""

    def __init__(self, section: LoraSection, model_dir: str | Path) -> None:
        layers = layers_of(section, model_dir)
        targets = sorted({name.rsplit(".", 1)[-1] for name in layers})
        # Named, or vLLM makes room in every layer it can, the output head among them, and spends time there.
        self.arguments = {
            "enable_lora": True,
            "max_lora_rank": room_for(section.rank),
            "lora_target_modules": targets,
        }
        """What vLLM is told."""
        self._folder = tempfile.TemporaryDirectory(prefix="kanabo-adapter-")
        self.path = Path(self._folder.name)
        self._weights = self.path / "adapter_model.safetensors"
        config = {"peft_type": "LORA", "r": section.rank, "lora_alpha": section.alpha, "target_modules": targets}
        (self.path / "adapter_config.json").write_text(json.dumps(config))
        # What an engine starts with leaves every layer as it is. One without any tensor is not accepted.
        zeros = {}
        for name, (size_out, size_in) in layers.items():
            zeros[f"base_model.model.{name}.lora_A.weight"] = np.zeros((section.rank, size_in), np.float32)
            zeros[f"base_model.model.{name}.lora_B.weight"] = np.zeros((size_out, section.rank), np.float32)
        save_file(zeros, self._weights)

    def hold(self, file: str) -> None:
        """Have the weights of a published file from now on."""
        self._weights.unlink()
        self._weights.symlink_to(file)

    def request(self, *, load_inplace: bool = False) -> Any:
        """vLLM's name for it, the same for good: what every request carries, those under way too.

        With `load_inplace` the weights are read anew: once after `hold`, or a request would do so at each step.
        """
        from vllm.lora.request import LoRARequest

        return LoRARequest("policy", 1, str(self.path), load_inplace=load_inplace)

    def close(self) -> None:
        self._folder.cleanup()
