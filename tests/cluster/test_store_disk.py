"""The embedded server and its disk: slow, full, or with a torn append-only file."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from cluster.buffer import Buffer, Limits
from cluster.buffer.server import DiskFull, Store
from cluster.errors import BufferUnavailable
from cluster.types import Manifest
from tests.cluster.disk import disk, kill
from tests.cluster.pipeline import RIGHT, Pipeline, group_of


def lost_by_a_kill(store: Store, seed: int) -> tuple[int, int]:
    """Four workers write, the server is killed and started again: how many of the acknowledged calls, how many lost."""
    pipeline = Pipeline(Buffer(store.url, "run", patience_s=0), Limits(100_000, 0, blocking=("judge",)))
    acknowledged: list[tuple[str, str]] = []

    def work() -> None:
        try:
            while claim := pipeline.claim():
                acknowledged.append((claim.id, "leased"))
                pipeline.buffer.put(group_of(claim, num_tokens=2000))
                acknowledged.append((claim.id, "pending"))
                pipeline.buffer.score(claim.id, {"judge": RIGHT})
                acknowledged.append((claim.id, "ready"))
        except BufferUnavailable:
            return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(random.Random(seed).uniform(1.5, 2.5))
    kill(store)
    for thread in threads:
        thread.join()
    store.restart()
    order = ["", "leased", "pending", "ready"]
    with redis.Redis.from_url(store.url) as client, client.pipeline(transaction=False) as pipe:
        for id, _ in acknowledged:
            pipe.hget(f"kanabo:{{run}}:group:{id}", "state")
        found = [(state or b"").decode() for state in pipe.execute()]
    lost = sum(order.index(now) < order.index(then) for now, (_, then) in zip(found, acknowledged, strict=True))
    return len(acknowledged), lost


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_under_a_slow_fsync_it_finds_every_acknowledged_call_again(tmp_path: Path, shim: Path, seed: int):
    with disk(shim, SLOW_FSYNC_MS=50):
        store = Store(tmp_path)
    with store:
        acknowledged, lost = lost_by_a_kill(store, seed)
    assert acknowledged > 20
    assert lost == 0


@pytest.mark.verify  # whether a write is pending when the kill comes is for the server's own clock to decide
def test_with_everysec_the_same_kill_loses_some(tmp_path: Path, shim: Path):
    """Why the setting is `always`: while an fsync is pending, `everysec` holds writes back in its own memory."""
    losses = []
    for seed in range(5):
        with disk(shim, SLOW_FSYNC_MS=4000):
            store = Store(tmp_path / str(seed))
        with store:
            redis.Redis.from_url(store.url).config_set("appendfsync", "everysec")
            acknowledged, lost = lost_by_a_kill(store, seed=seed)
        assert acknowledged > lost
        losses.append(lost)
        if lost:
            return
    raise AssertionError(f"five kills lost {losses} writes")


class Past(NamedTuple):
    """What six steps leave on disk, and what is known of a checkpoint after the third."""

    directory: Path
    manifest: Manifest
    trained: set[int]
    """Tasks of the three steps."""


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    directory = tmp_path_factory.mktemp("past") / "redis"
    with Store(directory) as store:
        pipeline = Pipeline(Buffer(store.url, "run"), Limits(2, 1))
        for _ in range(3):
            pipeline.iteration()
        manifest = pipeline.snapshot()
        trained = {line.task for line in pipeline.buffer.ledger("policy") if line.outcome.startswith("trained")}
        pipeline.buffer.trim(manifest)
        for _ in range(3):
            pipeline.iteration()
    return Past(directory, manifest, trained)


def append_only_file(directory: Path) -> Path:
    (file,) = [*directory.glob("appendonly.aof"), *directory.glob("appendonlydir/*.incr.aof")]
    return file


def goes_on(store: Store, past: Past) -> None:
    """Resumed from the checkpoint, the run reaches its sixth step: no task is trained twice, none is passed over."""
    buffer = Buffer(store.url, "run")
    buffer.forsake("policy")  # as a driver does when it starts: a tear may lie between a claim and its put
    pipeline = Pipeline(buffer, Limits(2, 1), manifest=past.manifest)
    while pipeline.step < 6:
        pipeline.iteration()
    # The ledger may have lost lines of the first three steps; the checkpoint holds what they trained.
    lines = [line for line in pipeline.buffer.ledger("policy") if line.task not in past.trained]
    trained = [line.task for line in lines if line.outcome.startswith("trained")]
    live = [line.task for line in lines if line.outcome == "live"]
    assert len(trained) == 6
    assert sorted([*past.trained, *trained, *live, *pipeline.requeued()]) == list(
        range(pipeline.buffer.status("policy")["frontier"])
    )
    summary = pipeline.buffer.summary("policy")
    assert summary["groups_trained_twice"] == 0
    assert summary["max_staleness_observed"] <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_append_only_file_gives_all_that_precedes_the_tear(tmp_path: Path, past: Past, seed: int):
    directory = shutil.copytree(past.directory, tmp_path / "redis")
    file = append_only_file(directory)
    size = random.Random(seed).randrange(file.stat().st_size)
    os.truncate(file, size)
    with Store(directory) as store:
        goes_on(store, past)


def follow_the_remedy(message: str, directory: Path, how: str) -> None:
    if how == "move away":
        named = re.search(r"Or move (.*) away", message)
        assert named
        Path(named[1]).rename(directory / "damaged")
        return
    command = re.search(r"^ +(bash -c .*)$", message, re.MULTILINE)
    assert command
    repaired = subprocess.run(command[1], shell=True, input="y\n", capture_output=True, text=True, check=False)
    assert "Successfully truncated" in repaired.stdout, repaired


@pytest.mark.parametrize("how", ["repair", "move away"])
@pytest.mark.parametrize("seed", range(3))
def test_one_that_cannot_be_loaded_is_refused_and_the_remedy_helps(tmp_path: Path, past: Past, seed: int, how: str):
    directory = shutil.copytree(past.directory, tmp_path / "it's redis")
    file = append_only_file(directory)
    data = bytearray(file.read_bytes())
    lengths = [found.start() for found in re.finditer(rb"\$\d+\r\n[a-zA-Z]", data)]
    data[random.Random(seed).choice(lengths)] ^= 1  # one bit, in what says how long an argument is
    file.write_bytes(data)
    with pytest.raises(BufferUnavailable, match="Bad file format") as refused:
        Store(directory)
    follow_the_remedy(str(refused.value), directory, how)
    with Store(directory) as store:
        goes_on(store, past)


def test_a_full_disk_is_waited_for_with_every_lease_and_nothing_is_dropped(
    tmp_path: Path, shim: Path, caplog: pytest.LogCaptureFixture
):
    flag, out = tmp_path / "full", []
    with disk(shim, FULL_DISK=flag), Store(tmp_path / "redis") as store:
        pipeline = Pipeline(Buffer(store.url, "run", patience_s=30), Limits(2, 0, lease_s=1))
        claims = pipeline.claim_all()
        flag.touch()
        threads = [threading.Thread(target=lambda c=c: out.append(pipeline.buffer.put(group_of(c)))) for c in claims]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            with pytest.raises(DiskFull, match=r"No space left on device[\s\S]*Free space"):
                store.restart()
            assert not store.alive()
        flag.unlink()
        store.restart()
        for thread in threads:
            thread.join()
        assert len(out) == 2
        assert len(pipeline.assemble().groups) == 2
        pipeline.release()
        pipeline.iteration()
        assert set(pipeline.buffer.summary("policy")["groups_dropped"]) == set()
        pipeline.check_tasks()
    (said,) = {record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()}
    assert "nothing is dropped" in said


def test_a_server_that_cannot_write_from_the_start_is_refused(tmp_path: Path, shim: Path):
    flag = tmp_path / "full"
    flag.touch()
    with disk(shim, FULL_DISK=flag), pytest.raises(DiskFull, match="Free space"):
        Store(tmp_path / "redis")
    Store(tmp_path / "redis").close()
