"""Gloo in place of NCCL, and no streams in place of CUDA's: a machine without GPUs can broadcast weights into vLLM.

Imported in the learner's process, and by vLLM's worker process because `engine.options.worker_extension_cls` names it.
Everything above the communicator is vLLM's own.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import packed_tensor

from actors.receive import Extension as Receiving

TIMEOUT = timedelta(seconds=60)


class GlooCommunicator:
    """The calls of vLLM's `PyNcclCommunicator` that a weight transfer makes."""

    def __init__(self, group: StatelessProcessGroup, device: Any) -> None:
        store = PrefixStore("gloo", group.store)
        self._gloo = ProcessGroupGloo(store, group.rank, group.world_size, timeout=TIMEOUT)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        self._gloo.broadcast(tensor, src).wait()

    def destroy(self) -> None:
        del self._gloo


class Extension(Receiving):
    """Named as `worker_extension_cls`."""


def install() -> None:
    pynccl.PyNcclCommunicator = GlooCommunicator  # pyright: ignore[reportAttributeAccessIssue]
    stream = SimpleNamespace(synchronize=lambda: None)
    packed_tensor._get_streams = lambda device, count: (stream,) * count  # pyright: ignore[reportPrivateUsage]
    torch.cuda.stream = lambda stream: nullcontext()  # pyright: ignore
    torch.accelerator.current_device_index = lambda: 0


install()
