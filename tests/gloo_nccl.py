"""Gloo in place of NCCL, and no streams in place of CUDA's: a machine without GPUs can broadcast weights into vLLM.

Everything above the communicator is vLLM's own. `tests/gloo_worker.py` installs it in vLLM's worker process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import packed_tensor

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


def install(replace: Callable[[Any, str, Any], object]) -> None:
    """Replace NCCL and CUDA's streams in this process, by `setattr` or by a test's `monkeypatch.setattr`."""
    stream = SimpleNamespace(synchronize=lambda: None)
    replace(pynccl, "PyNcclCommunicator", GlooCommunicator)
    replace(packed_tensor, "_get_streams", lambda device, count: (stream,) * count)
    replace(torch.cuda, "stream", lambda stream: nullcontext())
    replace(torch.accelerator, "current_device_index", lambda: 0)
