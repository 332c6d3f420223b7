"""What training goes on from: fp32 weights and optimizer states, whole, whatever ZeRO has made of them.

    learner/  state.json          steps, and the shapes of what was trained
              part-NNN.safetensors  one layer each: weight/NAME, exp_avg/NAME, exp_avg_sq/NAME

The files know neither ranks nor ZeRO stage, so a run continues with others. DeepSpeed's own universal checkpoint
needs a conversion in between, and starts from sharded states only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cluster.errors import ConfigError
from learner.engine.forward import by_layer

STATES = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
"""What each optimizer remembers of a parameter."""


class OptimizerState:
    """What the optimizer knows of one rank's trained parameters. Its calls are collective."""

    def __init__(self, deepspeed: Any, engine: Any, optimizer: torch.optim.Optimizer, stage: int, kind: str) -> None:
        """`optimizer` is the one that DeepSpeed's `engine` was given; `kind` its name in the recipe."""
        self._optimizer, self._kind = optimizer, kind
        layout = {0: Unsharded, 3: Partitioned}.get(stage, Flattened)
        self._layout = layout(deepspeed, engine.optimizer, optimizer)
        named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
        # By the policy's own names, with a critic around it too.
        self._named = [(name.removeprefix("policy."), parameter) for name, parameter in named]
        self._rank, self._world = deepspeed.comm.get_rank(), deepspeed.comm.get_world_size()

    def save(self, directory: Path, counters: dict[str, int]) -> None:
        """Write everything and `counters`; every rank writes some of the layers.

        Raises a rank's first OSError or SafetensorError once all layers are gathered: no other rank waits for it.
        """
        failures: list[Exception] = []
        with put_off(failures):
            directory.mkdir(parents=True, exist_ok=True)
        updates = self._updates()
        keys = ("weight", *(STATES[self._kind] if updates else ()))
        for i, layer in enumerate(by_layer(self._named)):
            mine = i % self._world == self._rank
            part = {}
            for name, parameter in layer:
                for key in keys:
                    whole = self._layout.get(parameter, key)
                    if mine:
                        part[f"{key}/{name}"] = whole.to("cpu", torch.float32, copy=True).contiguous()
            if mine and not failures:
                with put_off(failures):
                    save_file(part, directory / _part(i))
        if failures:
            raise failures[0]
        if self._rank == 0:
            state = {"optimizer": self._kind, "updates": updates, "shapes": self._shapes(), **counters}
            (directory / "state.json").write_text(json.dumps(state))

    def load(self, directory: Path) -> dict[str, Any]:
        """Put back what `save` wrote, under whatever ranks and stage; returns the counters.

        Raises ConfigError if there is nothing, or it belongs to another optimizer or other parameters.
        """
        state = self._read(directory)
        if state["updates"] and STATES[self._kind]:
            self._make_room(state["updates"])
        keys = ("weight", *(STATES[self._kind] if state["updates"] else ()))
        for i, layer in enumerate(by_layer(self._named)):
            with safe_open(directory / _part(i), "pt") as file:
                for name, parameter in layer:
                    for key in keys:
                        self._layout.put(parameter, key, file.get_tensor(f"{key}/{name}"))
        return state

    def _read(self, directory: Path) -> dict[str, Any]:
        try:
            state = json.loads((directory / "state.json").read_text())
        except FileNotFoundError as error:
            raise ConfigError(
                f"'{directory}' holds no learner state. Resume from another checkpoint, or start a new run from its "
                "Hugging Face files (model.path)."
            ) from error
        if state["optimizer"] != self._kind:
            raise ConfigError(
                f"'{directory}' was written with learner.optimizer = '{state['optimizer']}', this run has "
                f"'{self._kind}', which remembers other things. Set it back, or start a new run from the checkpoint's "
                "Hugging Face files (model.path)."
            )
        there, here = state["shapes"], self._shapes()
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise ConfigError(
                    f"'{directory}' does not fit what this run trains: {name} is {there.get(name, 'missing')} there, "
                    f"{here.get(name, 'missing')} here. Set model.path, learner.lora and learner.value back, or start "
                    "a new run."
                )
        return state

    def _shapes(self) -> dict[str, list[int]]:
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self._named}

    def _updates(self) -> int:
        """Steps that Adam's bias correction has counted: fewer than the learner's where some were skipped."""
        states = (self._optimizer.state.get(tensor, {}) for tensor in self._layout.stepped())
        return max((int(state["step"]) for state in states if "step" in state), default=0)

    def _make_room(self, updates: int) -> None:
        # torch makes the states at the first step; what is loaded comes before it.
        for tensor in self._layout.stepped():
            state = self._optimizer.state[tensor]
            state["step"] = torch.tensor(float(updates))
            for key in STATES[self._kind]:
                state.setdefault(key, torch.zeros_like(tensor.data))
        self._layout.states_exist()


class Unsharded:
    """ZeRO 0: the optimizer steps the parameters themselves, which are fp32."""

    def __init__(self, deepspeed: Any, zero: Any, optimizer: torch.optim.Optimizer) -> None:
        self._deepspeed, self._utils = deepspeed, deepspeed.utils
        self._zero, self._optimizer = zero, optimizer

    def stepped(self) -> Sequence[Tensor]:
        """The tensors that the optimizer steps."""
        return [tensor for group in self._optimizer.param_groups for tensor in group["params"]]

    def states_exist(self) -> None:
        """Called when the optimizer has got states for them, before one is put."""

    def get(self, parameter: torch.nn.Parameter, key: str) -> Tensor:
        if key == "weight":
            return parameter.detach()
        # One that no loss has reached has no state.
        return self._optimizer.state[parameter].get(key, torch.zeros_like(parameter))

    def put(self, parameter: torch.nn.Parameter, key: str, whole: Tensor) -> None:
        (parameter.data if key == "weight" else self._optimizer.state[parameter][key]).copy_(whole)


class Flattened(Unsharded):
    """ZeRO 1 and 2: each rank steps its piece of all parameters, laid end to end in fp32."""

    def states_exist(self) -> None:
        self._zero._lazy_init_hp_params_optimizer_state()

    def get(self, parameter: torch.nn.Parameter, key: str) -> Tensor:
        if key == "weight":
            return self._utils.safe_get_full_fp32_param(parameter)
        return self._utils.safe_get_full_optimizer_state(parameter, key)

    def put(self, parameter: torch.nn.Parameter, key: str, whole: Tensor) -> None:
        whole = whole.to(parameter.device)
        if key == "weight":
            parameter.data.copy_(whole)
            self._utils.safe_set_full_fp32_param(parameter, whole)
        else:
            self._utils.safe_set_full_optimizer_state(parameter, whole, key)


class Partitioned(Flattened):
    """ZeRO 3: each rank has a slice of every parameter, and steps an fp32 copy of it."""

    def stepped(self) -> Sequence[Tensor]:
        return self._zero.fp32_partitioned_groups_flat

    def states_exist(self) -> None: ...

    def put(self, parameter: torch.nn.Parameter, key: str, whole: Tensor) -> None:
        if key == "weight":
            # Small parameters stay gathered from step to step: a write to the slice alone would not reach them.
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(whole)
        here: Any = parameter
        size, rank = here.ds_tensor.numel(), self._deepspeed.comm.get_rank()
        # Slices are equal, so the last one may reach past the end.
        flat = whole.flatten()[size * rank : size * (rank + 1)].to(here.ds_tensor.device)
        mine = torch.nn.functional.pad(flat, (0, size - flat.numel()))
        if key == "weight":
            self._utils.safe_set_local_fp32_param(parameter, mine)
        else:
            self._utils.safe_set_local_optimizer_state(parameter, mine, key)


@contextmanager
def put_off(failures: list[Exception]) -> Iterator[None]:
    """Note a failure to write, to be raised when no rank waits for this one any more."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        failures.append(error)


def _part(number: int) -> str:
    return f"part-{number:03}.safetensors"
