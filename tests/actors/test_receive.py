"""Weights that are loaded beside those in use, with vLLM's own layers for CPUs and no engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file


class Layer(torch.nn.Module):
    """A matrix that vLLM packs for its kernel once it is loaded."""

    def __init__(self) -> None:
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod

        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(32, 32), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.randn(32), requires_grad=False)
        self.quant_method = UnquantizedLinearMethod()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, x, self.bias)


class Model(torch.nn.Module):
    """Two layers, a norm, an embedding and a head that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(8, 32), torch.nn.Linear(32, 8, bias=False)
        self.head.weight = self.embed.weight
        self.first, self.second, self.norm = Layer(), Layer(), torch.nn.LayerNorm(32)
        self.norm.register_buffer("scale", torch.ones(1))
        self.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(self.first(self.embed(ids)))) * self.norm.scale)

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            getattr(parameters[name], "weight_loader", default_weight_loader)(parameters[name], tensor)


def expected(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    x = weights["embed.weight"][ids]
    for name in ("first", "second"):
        x = torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
    return (
        torch.nn.functional.layer_norm(x, (32,), weights["norm.weight"], weights["norm.bias"])
        @ weights["embed.weight"].T
    )


def test_a_model_runs_with_its_weights_until_the_staged_ones_are_exchanged(tmp_path):
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    from actors.receive import PullEngine, PullUpdate

    torch.manual_seed(0)
    model, ids = Model(), torch.arange(8)
    record_metadata_for_reloading(model)
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    for layer in (model.first, model.second):
        layer.quant_method.process_weights_after_loading(layer)
    options: Any = SimpleNamespace(parallel_config=None, model_config=None)
    receiver = PullEngine(options, options, torch.device("cpu"), model)
    for left_out in ("second", "none"):  # of each version a layer is left out, which keeps what it has
        before = dict(weights)
        weights |= {k: torch.randn_like(v) for k, v in weights.items() if not k.startswith(left_out)}
        save_file({k: v for k, v in weights.items() if v is not before[k]}, tmp_path / "new.safetensors")
        receiver.start_weight_update()
        for part in range(4):  # two parts share a layer
            receiver.receive_weights(PullUpdate(str(tmp_path / "new.safetensors"), part, 4))
            torch.testing.assert_close(model(ids), expected(before, ids))
        receiver.finish_weight_update()
        torch.testing.assert_close(model(ids), expected(weights, ids))
