"""Publishing: the learner's weights on their way to the engines. vLLM is imported here for the GPU transport only.

pull:  rank 0 writes one safetensors file per version ─► announce(path) ─► engines fetch it when they get to it
nccl:  vLLM's own trainer engine broadcasts from rank 0 into running engines ─► announce
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from cluster.process.failpoints import failpoint
from cluster.types import Publication, WeightFile
from learner.types import Engine

Describe = Callable[[Engine, Publication], Publication]
"""Return a publication with probe and settings filled in. Collective: called on every rank."""


def undescribed(engine: Engine, publication: Publication) -> Publication:
    """Return the publication as it is."""
    return publication


KEPT_FILES = 2
"""An engine may still be reading the version before the newest."""


class Announcer(Protocol):
    def announce(self, publication: Publication) -> object: ...


class PullPublisher:
    """One file per version in shared memory, where engines fetch it."""

    def __init__(
        self,
        announcer: Announcer,
        policy: str,
        epoch: int,
        *,
        run_id: str,
        dtype: torch.dtype | None = None,
        describe: Describe = undescribed,
        root: Path | None = None,
    ) -> None:
        self._announcer, self._policy, self._epoch = announcer, policy, epoch
        self._dtype, self._describe = dtype, describe
        self.folder = weights_folder(run_id, policy, epoch, root)

    def publish(self, engine: Engine, step: int) -> None:
        """Write and announce the weights; the gathering is collective, the rest is rank 0's."""
        publication = self._describe(engine, Publication(self._policy, self._epoch, step))
        if engine.rank != 0:
            for _ in engine.weights():
                pass
            return
        path = self._write(engine, publication.version)
        failpoint("learner.mid_publish")
        self._announcer.announce(replace(publication, file=WeightFile(str(path), socket.gethostname())))
        self._forget_all_but(KEPT_FILES)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, engine: Engine, version: str) -> Path:
        """Write each tensor as it is gathered: no second copy of the model is held."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, temporary = self.folder / f"{version}.safetensors", self.folder / f"{version}.tmp"
        declared = [(name, self._dtype or dtype, shape) for name, dtype, shape in engine.metadata()]
        with temporary.open("wb", buffering=0) as file:
            _write_all(file, _header(declared, version))
            for (name, tensor), (expected, dtype, shape) in zip(engine.weights(), declared, strict=True):
                assert (name, tuple(tensor.shape)) == (expected, shape), f"{name} was gathered for {expected}"
                _write_all(file, _bytes_of(tensor.to("cpu", dtype)))
        temporary.replace(path)
        return path

    def _forget_all_but(self, count: int) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        for old in files[:-count]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()


DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As the safetensors format spells them (https://github.com/huggingface/safetensors#format)."""


def _header(declared: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], version: str) -> bytes:
    """Return a safetensors header for tensors that follow one another: its length in 8 bytes, then JSON.

    The safetensors package writes whole tensors that it was given all at once; what follows here comes one by one.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "version": version}}
    start = 0
    for name, dtype, shape in declared:
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their items' size
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A view of a CPU tensor's memory; a copy if the tensor is not contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write all of `data`: one call of the system takes at most 2 GiB."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def weights_folder(run_id: str, policy: str, epoch: int, root: Path | None = None) -> Path:
    """Where the files published in an epoch lie on the learner's node: a dead epoch's are removed while a new one
    writes.
    """
    return (root or shared_memory()) / f"kanabo-{run_id}-{policy}-weights-{epoch}"


def shared_memory() -> Path:
    """A folder in memory if there is one: weights are read within seconds and never needed after a crash."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


class NcclPublisher:
    """vLLM's trainer engine: one broadcast from rank 0 to every worker of every engine.

    `handles` are the rollout actors, which have the methods of vLLM's `RayVLLMWeightSyncClient` and pause themselves.
    The group is fixed: an engine that joins later enters it when the publisher is built anew.
    """

    def __init__(
        self,
        announcer: Announcer,
        policy: str,
        epoch: int,
        engine: Engine,
        *,
        handles: list[Any],
        workers_per_engine: int,
        master: tuple[str, int],
        describe: Describe = undescribed,
    ) -> None:
        from vllm.distributed.weight_transfer import RayVLLMWeightSyncClient, WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._announcer, self._policy, self._epoch = announcer, policy, epoch
        self._describe, self._client = describe, RayVLLMWeightSyncClient(handles)
        self._handles = handles
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                master_address=master[0],
                master_port=master[1],
                world_size=1 + len(handles) * workers_per_engine,
                rank=engine.rank,
            ),
            client=self._client,
            source=engine_source(engine),
        )

    def publish(self, engine: Engine, step: int) -> None:
        """Broadcast into the running engines, then announce: nobody waits to fetch."""
        publication = self._describe(engine, Publication(self._policy, self._epoch, step))
        self._trainer.send_weights()
        if engine.rank != 0:
            return
        import ray

        # The trainer's round ends without a version. Name it before the announcement: a claim carries it.
        ray.get([handle.update_weight_version.remote(publication.version) for handle in self._handles])
        self._announcer.announce(publication)

    def close(self) -> None:
        self._trainer.shutdown()


def engine_source(engine: Any) -> Any:
    """vLLM's view of our engine: shapes without gathering, tensors by iterating (a collective)."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class EngineSource(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, dtype, shape) for name, dtype, shape in engine.metadata()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return engine.weights()

    return EngineSource()
