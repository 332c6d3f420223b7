"""What belongs to the user is never touched: only segments that a worker's own engine created are removed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

MEMORY = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no /dev/shm")

WORKER = """
import mmap, os, subprocess, sys
from multiprocessing.shared_memory import SharedMemory
from cluster.placement.ray_runtime import CreatedSegments, remove_segments_after_me
from cluster.process.cleanup import end_children_with_me

end_children_with_me()
paths = sys.argv[1:]
files = [open(path, "r+b") for path in paths[: len(paths) // 2]]
maps = [mmap.mmap(file.fileno(), 0) for file in files]          # the user's, mapped before the engine starts
with CreatedSegments() as created:
    own = SharedMemory(create=True, size=4096)                  # the engine's
    files += [open(path, "r+b") for path in paths[len(paths) // 2 :]]
    new = f"/dev/shm/made-{os.getpid()}.parquet"                 # the user's, made by the worker itself
    with open(new, "w+b") as file:
        file.write(b"x" * 4096)
        file.flush()
        maps.append(mmap.mmap(file.fileno(), 0))
    maps += [mmap.mmap(file.fileno(), 0) for file in files[len(paths) // 2 :]]
remove_segments_after_me(created.found)
print(own.name, new, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def users_files(tmp_path: Path):
    """Files of a user in shared memory and elsewhere, some under names that look generated."""
    tag = uuid4().hex
    names = [f"data-{tag}.parquet", f"data-{tag}.arrow", f"psm_{tag[:8]}", f"sem.mp-{tag[:8]}", f"torch_1_{tag}"]
    files = [MEMORY / name for name in names] + [tmp_path / "train.parquet", tmp_path / f"psm_{tag[8:16]}"]
    for file in files:
        file.write_bytes(b"the user's" * 100)
    yield files
    for file in files:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("order", ["mapped before and during", "mapped during and before"])
def test_files_of_the_user_outlive_a_killed_worker_that_mapped_them(users_files: list[Path], order: str):
    paths = users_files if order.startswith("mapped before") else users_files[::-1]
    done = subprocess.run([sys.executable, "-c", WORKER, *map(str, paths)], capture_output=True, text=True, timeout=60)
    created, made = (MEMORY / name for name in done.stdout.split())
    users_files.append(made)
    assert created.name.startswith("psm_"), done.stderr
    deadline = time.monotonic() + 20
    while created.exists():
        assert time.monotonic() < deadline, "what the worker's engine created is still there"
        time.sleep(0.1)
    assert [file for file in users_files if not file.exists()] == []
    assert all(file.read_bytes() == b"the user's" * 100 for file in users_files[:-1])
