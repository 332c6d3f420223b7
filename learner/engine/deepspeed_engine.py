"""The learner's engine: one rank of a Hugging Face causal LM under DeepSpeed. The only file that imports deepspeed.

    logprobs(micro) ─► backward(loss) ─► … every micro … ─► optimizer_step() ─► weights() ─► publish

Calls marked *collective* must be made by every rank, in the same order; each has a time-out.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed import distributed_c10d as c10d

from cluster.config import LearnerSection
from cluster.errors import ConfigError, InfrastructureError, one_line
from cluster.types import MicroBatch
from learner.engine import lora
from learner.engine.forward import (
    PackedModel,
    as_saved,
    attach_row_selection,
    by_layer,
    has_fused_experts,
    max_positions,
    tied_head,
    token_statistics,
    use_savable_generation_config,
    whole_shape,
)
from learner.engine.optimizer import Guarded, lr_at, make_optimizer, parameter_groups
from learner.engine.optimizer_state import OptimizerState
from learner.engine.trees import packing_of, why_not_trees
from learner.engine.value_head import ValueHead
from learner.types import DTYPES

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_templ*")


def join(rank: int, world: int, master: tuple[str, int], *, timeout_s: float) -> None:
    """Enter the process group: NCCL where this process has a GPU, gloo elsewhere. Collective.

    DeepSpeed reads the environment when it is imported, so it is set here and deepspeed is imported after.
    """
    on_gpu = torch.cuda.is_available()
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",  # Ray shows each rank its own GPU alone
        LOCAL_SIZE="1",
        MASTER_ADDR=master[0],
        MASTER_PORT=str(master[1]),
        DS_ACCELERATOR="cuda" if on_gpu else "cpu",
    )
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its all-reduce in shared memory is for inference. It would be compiled at every first start, leave 69 MB in
    # /dev/shm for every process that has ended, and wait without a deadline.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, wait = "nccl" if on_gpu else "gloo", timedelta(seconds=timeout_s)
    if not on_gpu:
        # DeepSpeed takes over a process group that is there. Its own has a store that listens on every interface.
        store = rendezvous_store(rank, world, master, timeout_s)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=wait,
    )


def rendezvous_store(rank: int, world: int, master: tuple[str, int], timeout_s: float) -> TCPStore:
    """Return the store where the ranks meet; it listens at the master's address alone."""
    listener = None
    if rank == 0:
        listener = socket.socket(socket.AF_INET6 if ":" in master[0] else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(master)
        listener.listen()
    return TCPStore(
        *master, world, rank == 0, timedelta(seconds=timeout_s), wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )  # fmt: skip


def turn_off_dropout(model: Any) -> None:
    """Set every rate of dropout of a model to 0: of its modules, of what they hand to functions, of its config."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)


class DeepSpeedEngine(PackedModel):
    """`Engine` on DeepSpeed ZeRO 0-3, CPU or GPU. `join` comes first."""

    def __init__(self, model_dir: str | Path, section: LearnerSection, seed: int = 0) -> None:
        """`seed` initialises adapters, if the recipe has them."""
        import deepspeed
        from transformers import AutoModelForCausalLM

        self._deepspeed, self._dist = deepspeed, deepspeed.comm
        self._model_dir, self._section = Path(model_dir), section
        self.rank, self.world = self._dist.get_rank(), self._dist.get_world_size()
        self.step, self.num_skipped = 0, 0
        if section.threads:
            torch.set_num_threads(section.threads)
        read: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=DTYPES[section.dtype], output_loading_info=True
        )
        model, loaded = read
        if missing := sorted(loaded["missing_keys"]):
            raise ConfigError(
                f"model.path: '{model_dir}' lacks {len(missing)} of the model's weights, {missing[0]} among them, "
                "which would begin at random. Copy the weights again, with the config.json that they were saved with."
            )
        self.vocab_size = int(model.config.vocab_size)
        self.max_positions = max_positions(model.config)
        self._copied = (
            *TOKENIZER_FILES,
            *(("generation_config.json",) if use_savable_generation_config(model) else ()),
        )
        if not section.dropout:
            turn_off_dropout(model)
        model.train()
        if section.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._select = attach_row_selection(model)
        self._lora = lora.attach(model, section.lora, self._model_dir, seed) if section.lora else None
        self._tied_head = None if section.lora else tied_head(model)
        self._fused = not section.lora and has_fused_experts(model)
        self._statistics = partial(token_statistics, entropy_grad=section.loss.entropy_coef != 0)
        # Without ZeRO the fp32 optimizer is ours to guard; DeepSpeed would clip without a look at infinities.
        self._guard = self._stage == 0
        self._policy = model
        self._critic = ValueHead(model) if section.value else None
        groups, self._rates = parameter_groups(model, self._critic, section)
        optimizer = make_optimizer(groups, section, guarded=self._guard)
        self._engine: Any = deepspeed.initialize(
            model=self._critic or model, optimizer=optimizer, config=self._config()
        )[0]
        limit_waits(section.collective_timeout_s)
        self._alone = self.world == 1 and self._stage == 0
        if self._alone:
            # To add up a single summand DeepSpeed would copy every gradient there and back.
            self._engine.enable_backward_allreduce = False
        self._optimizer = optimizer
        self._optimizer_state = OptimizerState(deepspeed, self._engine, optimizer, self._stage, section.optimizer)
        self._seeded = -1
        self.device = torch.device(self._engine.device)
        self.shares_prefixes = packing_of(section) == "shared_prefix" and self._computes_trees()

    @property
    def num_parameters(self) -> int:
        """Parameters of the policy, frozen ones and those on other ranks included."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self._policy.parameters())

    def _computes_trees(self) -> bool:
        """Whether the model computes common prefixes once; the log says why not. Collective."""
        with torch.no_grad():
            why = why_not_trees(self._policy.config, lambda micro: self.logprobs(micro)[0], self.vocab_size)
        log.info("rollouts of a group share their prefixes" if not why else f"every rollout is computed whole: {why}")
        return not why

    @property
    def _stage(self) -> int:
        # Unsharded bf16 would accumulate gradients in bf16 and keep no fp32 master weights.
        return max(1, self._section.zero_stage) if self._section.dtype == "bfloat16" else self._section.zero_stage

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # formal: micros are of any size
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0 if self._guard else self._section.clip_grad_norm,
            "zero_optimization": {"stage": self._stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }
        if self._section.dtype == "bfloat16":
            config |= {
                "bf16": {"enabled": True, "check_grad_overflow": True},
                "data_types": {"grad_accum_dtype": "fp32"},
            }
        return config

    def before_training_pass(self) -> None:
        """Seed dropout once a step: one that is taken again, after a crash or in a replay, has the same masks."""
        if self._seeded != self.step:
            torch.manual_seed(self.step * self.world + self.rank)
            self._seeded = self.step

    @torch.no_grad()
    def initial_logprobs(self, micro: MicroBatch) -> Tensor:
        """As `logprobs`, without the adapters: what the model said before the first step. Collective."""
        with lora.adapters_off(self._engine.module):
            return self.logprobs(micro)[0]

    def logprobs_and_values(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        assert self._critic is not None, "no learner.value"
        logprobs, entropy = self.logprobs(micro)
        return logprobs, entropy, self._critic.values(micro)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages gradients over ranks.
        self._engine.backward(loss * self.world)

    def optimizer_step(self, *, final: bool = True) -> dict[str, float]:
        """Update with the gradients of all micros; a non-finite gradient skips the update, with a count."""
        lr = lr_at(self.step, self._section.schedule, self._section.steps)
        for group, rate in zip(self._engine.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
            for parameter in group["params"] if self._alone else ():
                if parameter.grad is None:  # an expert without tokens: ranks that add up have zeros, too
                    parameter.grad = torch.zeros_like(parameter)
        self._engine.step()
        if isinstance(self._optimizer, Guarded):
            norm, skipped = self._optimizer.grad_norm, self._optimizer.skipped
        else:
            norm, skipped = float(self._engine.get_global_grad_norm() or 0.0), not self._engine.was_step_applied()
        self.num_skipped += skipped
        self.step += final
        return {"learner/grad_norm": norm, "learner/lr": lr, "learner/num_skipped": float(self.num_skipped)}

    def skip_step(self) -> None:
        """Count a step without gradients: its batch was empty."""
        self.step += 1

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """What engines lack, layer by layer. Collective.

        Full parameters by Hugging Face name, a tied output head under its own name too; or adapters by peft's name.
        Every rank must exhaust it. A tensor is valid until the next is asked for, unless ZeRO is below 3.
        """
        head = None
        for layer in self._layers():
            if self._tied_head and self._tied_head[1] in layer:
                head = layer[self._tied_head[1]]
                head = head.clone() if self._stage == 3 else head
            yield from (as_saved(self._policy, layer) if self._fused else layer).items()
        if self._tied_head and head is not None:
            yield self._tied_head[0], head

    def _layers(self) -> Iterator[dict[str, Tensor]]:
        """What is published, whole, layer by layer, as the model in training names it. Collective."""
        for group in by_layer(self._published()):
            with self._gathered([p for _, p in group]):
                yield {self._public(name): parameter.detach() for name, parameter in group}

    def _published(self) -> list[tuple[str, torch.nn.Parameter]]:
        named = self._policy.named_parameters()
        return [(n, p) for n, p in named if not self._lora or lora.is_adapter(n)]

    def _public(self, name: str) -> str:
        return lora.peft_name(name) if self._lora else name

    def _gathered(self, parameters: list[torch.nn.Parameter]) -> Any:
        return self._deepspeed.zero.GatheredParameters(parameters) if self._stage == 3 else nullcontext()

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and full shape of what `weights` yields, without gathering anything."""
        found = {}
        for group in by_layer(self._published()):
            layer = {self._public(n): torch.empty(whole_shape(p), dtype=p.dtype, device="meta") for n, p in group}
            layer = as_saved(self._policy, layer) if self._fused else layer
            found |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in layer.items()}
        if self._tied_head:
            found[self._tied_head[0]] = found[self._tied_head[1]]
        return [(name, dtype, shape) for name, (dtype, shape) in found.items()]

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        if self.world == 1:
            return flag
        said = torch.tensor([float(flag)], device=self.device)
        self._dist.all_reduce(said, self._dist.ReduceOp.MAX)
        return bool(said.item())

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks; every rank has the same names."""
        if self.world == 1 or not values:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        self._dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def barrier(self) -> None:
        self._dist.barrier()

    def save(self, directory: Path) -> None:
        """Optimizer, fp32 weights of what is trained, and step: to continue with any ranks and ZeRO stage."""
        self._optimizer_state.save(directory, {"step": self.step, "num_skipped": self.num_skipped})

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote. Raises ConfigError if it does not belong to this run."""
        state = self._optimizer_state.load(directory)
        self.step, self.num_skipped = state["step"], state["num_skipped"]

    def export(self, directory: Path) -> None:
        """Hugging Face safetensors or an adapter in peft's format, configuration and tokenizer, written by rank 0."""
        state = {}
        for layer in self._layers():
            if self.rank == 0:
                state |= {name: tensor.to("cpu", copy=self._stage == 3) for name, tensor in layer.items()}
        if self.rank == 0:
            if self._lora:
                lora.write(directory, state, self._lora)
            else:
                self._policy.save_pretrained(directory, state_dict=state)
            self._copy_files(directory)

    def try_export(self) -> None:
        """Write all of an export but the weights into a folder that is removed, before anything is trained for it.

        Raises ConfigError.
        """
        from transformers import AutoConfig, AutoTokenizer

        with tempfile.TemporaryDirectory(prefix="kanabo-export-") as folder:
            try:
                self._policy.config.save_pretrained(folder)
                if getattr(self._policy, "generation_config", None) is not None:
                    self._policy.generation_config.save_pretrained(folder)
                self._copy_files(Path(folder))
                AutoConfig.from_pretrained(folder)
                AutoTokenizer.from_pretrained(folder)
            except Exception as error:  # whatever the files of others make of it
                raise ConfigError(
                    f"model.path: what is trained from '{self._model_dir}' could not be saved: {one_line(error)} "
                    "Fix its configuration, generation_config.json or tokenizer files."
                ) from error

    def _copy_files(self, directory: Path) -> None:
        for pattern in self._copied:
            for file in self._model_dir.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, directory / file.name)

    def close(self) -> None:
        self._engine.destroy()
        torch.distributed.destroy_process_group()


def limit_waits(timeout_s: float) -> None:
    """Give every group that exists this time-out.

    `init_process_group` sets that of its own group alone. DeepSpeed reduces and gathers in a copy of it, and torch
    gives such a new group its default: half an hour for gloo, ten minutes for NCCL.
    """
    for group in c10d._world.pg_map:
        c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


@contextmanager
def collective_failures(rank: int, timeout_s: float) -> Iterator[None]:
    """Translates what a rank sees when another has died, or did not come in time, into InfrastructureError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise InfrastructureError(
                f"rank {rank} waited in a collective for a rank that has died or hangs "
                f"(learner.collective_timeout_s = {timeout_s:g}): {one_line(error)}"
            ) from error
        raise
