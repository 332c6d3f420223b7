"""Weights into a running engine: the pull transport's receiving end, inside vLLM's workers.

Adapters vLLM receives by itself; what is here for them makes its CPU build apply one in reasonable time.

vLLM imports this module there because an engine names it in `worker_extension_cls`. The learner publishes one
safetensors file per version; a worker reads it and reloads layer by layer, without stopping generations in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

BACKEND = "kanabo_pull"
HEADS = ("lm_head", "embed_out", "output")
"""What output heads are called."""


@dataclass
class PullInit(WeightTransferInitInfo):
    pass


@dataclass
class PullUpdate(WeightTransferUpdateInfo):
    path: str
    """A safetensors file with every parameter under its Hugging Face name."""


class PullEngine(WeightTransferEngine[PullInit, PullUpdate]):
    init_info_cls, update_info_cls = PullInit, PullUpdate

    def init_transfer_engine(self, init_info: PullInit) -> None: ...

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: PullUpdate) -> None:
        with safe_open(update_info.path, "pt") as file:
            # In the file's own order, which is by layer: a reload buffers a layer until it is complete.
            load: Any = self.model.load_weights
            names = [name for name in file.keys() if self._takes(name)]  # noqa: SIM118
            load([(name, file.get_tensor(name)) for name in names])

    def _takes(self, name: str) -> bool:
        """A model of vLLM without an output head of its own (Gemma) uses the embedding, and refuses a tied head."""
        if name.rpartition(".")[0].rpartition(".")[2] not in HEADS:
            return True
        tied = getattr(self.model_config.hf_text_config, "tie_word_embeddings", False)
        return not tied or any(path.rpartition(".")[2] in HEADS for path, _ in self.model.named_modules())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            redispatch_lm_head(self.model)
            pack_experts(self.model)

    def shutdown(self) -> None: ...


def redispatch_lm_head(model: torch.nn.Module) -> None:
    """Pack the output head anew.

    The CPU build keeps a packed copy of it that a reload does not touch where it is tied to the embedding: without
    this, log-probs are wrong by several nats and nothing says so.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def pack_experts(model: torch.nn.Module) -> None:
    """Pack the experts of every layer anew.

    The CPU build packs them for its kernel when a model is loaded, and leaves the plain ones in their place when it is
    reloaded: without this, log-probs are wrong by a nat and more.
    """
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(module)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, PullEngine)


def add_lora_linear(
    self: PunicaWrapperCPU,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **unused: Any,
) -> None:
    """y [tokens, out] += x [tokens, in] · Aᵀ · Bᵀ, slice by slice: one adapter, which every request carries.

    vLLM's own routine for CPUs looks up an adapter for each token and copies it: 47 times slower at 4096 tokens of
    width 576, seven times what the layer itself takes.
    """
    inputs, outputs, start = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1]), 0
    for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        assert len(a) == 1, "the engine has room for one adapter"
        outputs[:, start : start + size] += inputs @ a[0, 0].T @ b[0, 0].T * scale
        start += size


if current_platform.is_cpu():
    PunicaWrapperCPU.add_lora_linear = add_lora_linear


class Extension:
    """Named as `worker_extension_cls`, so that worker processes import this module."""
