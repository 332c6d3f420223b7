"""Weights into a running engine: the pull transport's receiving end, inside vLLM's worker processes.

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
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

BACKEND = "kanabo_pull"


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
            load([(name, file.get_tensor(name)) for name in file.keys()])  # noqa: SIM118

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            redispatch_lm_head(self.model)

    def shutdown(self) -> None: ...


def redispatch_lm_head(model: torch.nn.Module) -> None:
    """Pack the output head anew.

    The CPU build keeps a packed copy of it that a reload does not touch where it is tied to the embedding: without
    this, log-probs are wrong by several nats and nothing says so.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, PullEngine)


class Extension:
    """Named as `worker_extension_cls`, so that worker processes import this module."""
