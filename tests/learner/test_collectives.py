"""A rank that is alone in a collective: two processes, gloo, and a group that was made as DeepSpeed makes its own."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from learner.engine.deepspeed_engine import collective_failures, limit_waits

TIMEOUT_S = 2.0


def alone(store: Path, rank: int, pipe: Connection) -> None:
    """Rank 0 reduces; rank 1 hangs until it is killed."""
    file = f"file://{store}"
    dist.init_process_group("gloo", file, timedelta(seconds=60), rank=rank, world_size=2)
    group = dist.new_group([0, 1])
    limit_waits(TIMEOUT_S)
    if rank == 1:
        time.sleep(600)
    begun = time.monotonic()
    try:
        with collective_failures(rank, TIMEOUT_S):
            dist.all_reduce(torch.ones(1), group=group)
    except Exception as error:
        pipe.send((type(error).__name__, str(error), time.monotonic() - begun))


def test_a_collective_of_any_group_ends_by_the_time_out_and_says_who_waited(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    ranks = [context.Process(target=alone, args=(tmp_path / "store", rank, theirs)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    try:
        assert ours.poll(180), "the rank still waits"
        kind, said, took_s = ours.recv()
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert kind == "InfrastructureError"
    assert "rank 0 waited in a collective for a rank that has died or hangs" in said
    assert "learner.collective_timeout_s = 2" in said
    assert TIMEOUT_S <= took_s < 30


def test_an_error_of_our_own_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"), collective_failures(0, 1.0):
        raise RuntimeError("shapes do not match")
