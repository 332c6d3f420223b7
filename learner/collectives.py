"""Collectives end: every group of ranks has the recipe's time-out, and a rank left alone says whom it waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError
from torch.distributed import distributed_c10d as c10d

from cluster.errors import InfrastructureError, one_line


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
