"""Weights into a running engine: the pull transport's receiving end, inside vLLM's workers.

Adapters vLLM receives by itself; what is here for them makes its CPU build apply one in reasonable time.

vLLM imports this module there because an engine names it in `worker_extension_cls`. The learner publishes one
safetensors file per version; a worker maps it. On a CPU the worker loads and packs a second set of tensors, a part of
the file between two steps of generation, and exchanges the two sets while generations pause. Elsewhere it reloads the
tensors in place, layer by layer, while generations pause.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS, to_meta_tensor
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers
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
    part: int = 0
    parts: int = 1
    """This update loads part `part` of `parts` parts of as many tensors each, in the file's order."""


class PullEngine(WeightTransferEngine[PullInit, PullUpdate]):
    init_info_cls, update_info_cls = PullInit, PullUpdate
    _staged: StagedModel | None = None

    def init_transfer_engine(self, init_info: PullInit) -> None: ...

    def start_weight_update(self) -> None:
        if can_stage(self.model):
            self._staged = self._staged or StagedModel(self.model)
            self._staged.begin()
        else:
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: PullUpdate) -> None:
        with safe_open(update_info.path, "pt") as file:
            # In the file's own order, which is by layer: a reload buffers a layer until it is complete.
            names = file.keys()
            first, last = (len(names) * k // update_info.parts for k in (update_info.part, update_info.part + 1))
            load: Any = self._target.load_weights
            load([(name, file.get_tensor(name)) for name in names[first:last] if self._takes(name)])
        if update_info.part == update_info.parts - 1:
            self._finalize()

    @property
    def _target(self) -> torch.nn.Module:
        return self._staged.model if self._staged else self.model

    def _finalize(self) -> None:
        if self._staged:
            self._staged.finalize(self.model_config)
        else:
            finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            redispatch_lm_head(self._target)
            pack_experts(self._target)

    def _takes(self, name: str) -> bool:
        """A model of vLLM without an output head of its own (Gemma) uses the embedding, and refuses a tied head."""
        if name.rpartition(".")[0].rpartition(".")[2] not in HEADS:
            return True
        tied = getattr(self.model_config.hf_text_config, "tie_word_embeddings", False)
        return not tied or any(path.rpartition(".")[2] in HEADS for path, _ in self.model.named_modules())

    def finish_weight_update(self) -> None:
        if self._staged:
            self._staged.exchange()

    def shutdown(self) -> None: ...


STAGED_BYTES = 16 * 2**20
"""Size of a part of published weights, which is loaded between two steps of generation."""
STAGED_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
"""Ways to hold a layer's weights whose processing leaves its results on the layer alone."""


def can_stage(model: torch.nn.Module) -> bool:
    """Return whether a second set of the model's tensors can be made while the first one is used.

    On a CPU, for plain layers. A GPU has no memory for two sets, and its graphs keep addresses.
    """
    if not current_platform.is_cpu():
        return False
    addresses = {parameter.untyped_storage().data_ptr() for parameter in model.parameters() if parameter.numel()}
    return all(
        isinstance(getattr(module, "quant_method", None), (*STAGED_METHODS, type(None))) for module in model.modules()
    ) and not any(buffer.untyped_storage().data_ptr() in addresses for buffer in model.buffers())


class StagedModel:
    """A second set of a model's tensors: modules with the structure and options of the model's own.

    `begin` takes what the model has, vLLM's layerwise reload puts new tensors in the place of all that is loaded,
    `finalize` completes the set, and `exchange` hands it over. Buffers are no weights: no learner publishes any, and
    the model keeps its own.
    """

    def __init__(self, live: torch.nn.Module) -> None:
        self._pairs = [(module, _twin(module)) for module in live.modules()]
        twins = {id(module): twin for module, twin in self._pairs}
        for module, twin in self._pairs:
            twin._modules = {name: child and twins[id(child)] for name, child in module._modules.items()}
            twins_info, info = get_layerwise_info(twin), get_layerwise_info(module)
            parameters, buffers = info.restore_metadata
            twins_info.restore_device = info.restore_device
            twins_info.restore_metadata = _metas(parameters), _metas(buffers)
        self.model = self._pairs[0][1]
        self._attributes: list[dict[str, Any]] = []

    def begin(self) -> None:
        for module, twin in self._pairs:
            twin._parameters = {
                # The reload loads these in place; it makes all others anew.
                name: _copy(tensor) if name in SKIP_TENSORS else tensor
                for name, tensor in module._parameters.items()
            }
            twin._buffers = dict(module._buffers)
        self._attributes = [_attributes(twin) for _, twin in self._pairs]
        initialize_layerwise_reload(self.model)
        for _, twin in self._pairs:
            get_layerwise_info(twin).kernel_tensors = None  # keep what is made, instead of copying it into these

    def finalize(self, model_config: Any) -> None:
        for module, twin in self._pairs:
            info = get_layerwise_info(twin)
            if info.can_load() and info.load_numel == 0:  # the new weights leave it out: it keeps its own
                info.kernel_tensors = get_layer_params_buffers(module)
        finalize_layerwise_reload(self.model, model_config)
        new = {
            id(module._parameters[name]): tensor
            for module, twin in self._pairs
            for name, tensor in twin._parameters.items()
            if tensor is not None and tensor is not module._parameters[name]
        }
        for module, twin in self._pairs:  # a tied head is not loaded, and has the embedding's tensor
            for name, tensor in module._parameters.items():
                if tensor is not None and twin._parameters[name] is tensor:
                    twin._parameters[name] = new.get(id(tensor), tensor)

    def exchange(self) -> None:
        """Give the model the staged tensors and what was made of them, such as packed matrices, and keep none."""
        for (module, twin), before in zip(self._pairs, self._attributes, strict=True):
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    tensor.data = twin._parameters[name].data
            made = {name: value for name, value in _attributes(twin).items() if before.get(name) is not value}
            module.__dict__.update(made)
            twin.__dict__ = {**twin.__dict__, **dict.fromkeys(made), "_parameters": {}, "_buffers": {}}
        self._attributes = []


TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""Where a module keeps its tensors and its parts."""


def _twin(module: torch.nn.Module) -> Any:
    """Return a module of the same class and attributes with no tensor and no part."""
    twin: Any = object.__new__(type(module))
    lasting_not = set(module._non_persistent_buffers_set)
    twin.__dict__ = {**module.__dict__, **{name: {} for name in TENSORS[:3]}, TENSORS[3]: lasting_not}
    return twin


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in TENSORS}


def _copy(parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
    return None if parameter is None else torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)


def _metas(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: to_meta_tensor(tensor) for name, tensor in tensors.items()}


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
    """Methods of vLLM's workers: named as `worker_extension_cls`, so that worker processes import this module."""

    model_runner: Any

    def staged_parts(self, path: str) -> int:
        """Return in how many parts the file at `path` is loaded beside the weights in use; 0 where it cannot be."""
        return 1 + Path(path).stat().st_size // STAGED_BYTES if can_stage(self.model_runner.get_model()) else 0
