"""vLLM's worker process with gloo in place of NCCL: it imports this because `worker_extension_cls` names it."""

from __future__ import annotations

from actors.receive import Extension as Receiving
from tests import gloo_nccl

gloo_nccl.install(setattr)


class Extension(Receiving):
    """Named as `engine.options.worker_extension_cls`."""
