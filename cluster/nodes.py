"""Ray on this machine or a cluster: joined or started, how its cores are shared out, and how its processes end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.causes import root_of
from cluster.config import POLICY, RunConfig
from cluster.errors import ConfigError, InfrastructureError, KanaboError, StartFailed, one_line
from cluster.ray_address import check_address
from cluster.room import needed_cpus

INFRASTRUCTURE = (
    InfrastructureError, RayActorError, ActorUnschedulableError, NodeDiedError, ObjectLostError, OutOfMemoryError,
    WorkerCrashedError,
)  # fmt: skip
"""What a worker may die of and be replaced."""
SPARE_PLACES = 16
"""On one machine: for workers that join later."""
CLOSE_S = 20.0
"""For actors to close before they are killed."""
GENERATED = re.compile(
    r"psm_[0-9a-f]{8}|sem\.(mp|loky)-\w+|torch_\d+_\d+_\d+|__KMP_REGISTERED_LIB_\d+(_\d+)?|vllm_(offload|ec)_[\w-]+\.mmap"
)
"""Names in /dev/shm that Python's multiprocessing, torch and OpenMP make up."""


def start_ray(config: RunConfig) -> None:
    """Join the cluster that $RAY_ADDRESS names, or start one on this machine.

    Raises ConfigError if it cannot be joined.
    """
    if "RAY_ADDRESS" in os.environ:
        _join(os.environ["RAY_ADDRESS"])
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        "local",  # also where another Ray runs on this machine
        # Logical places, not cores: on a laptop engine and learner share what is there.
        num_cpus=max(os.cpu_count() or 1, int(needed_cpus(config)) + SPARE_PLACES),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), *_python_path()])}},
    )


def _join(address: str) -> None:
    """Connect to a running cluster. Raises ConfigError."""
    check_address(address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"RAY_ADDRESS = '{address}' cannot be joined: {one_line(error)} "
            "Start a cluster there, or unset RAY_ADDRESS to work on this machine alone."
        ) from error


def _python_path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []


def settle() -> None:
    """First thing in every process: ninja, which DeepSpeed compiles with, lives beside the interpreter."""
    beside = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != beside:
        os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def collect_less() -> None:
    """In an actor that is ready: look for garbage every 20,000 new objects instead of every 700, not in old ones.

    Whoever waits for thousands of answers at once creates many objects and little garbage.
    """
    gc.freeze()
    gc.set_threshold(20_000)


def reachable_address() -> str:
    """Where this process can be reached by the run's actors: the loopback interface, unless there are other nodes."""
    return ray.util.get_node_ip_address() if "RAY_ADDRESS" in os.environ else "127.0.0.1"


def scraped_at() -> str:
    """Where Prometheus finds this node's metrics, the run's among them."""
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    return f"http://{here['NodeManagerAddress']}:{here['MetricsExportPort']}/metrics"


def available_bytes() -> int:
    """Memory of this machine that can be had without swapping; all of it where the kernel does not say."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def threads(config: RunConfig, part: str, policy: str = POLICY) -> int:
    """CPU threads for one `engine` or one `learner` rank: by default the cores are shared out evenly.

    More threads than cores make both slower: on two cores a step of the quickstart takes 0.8 s with one each, 2.4 s
    with two for the learner.
    """
    own = config.of_policy(policy)
    chosen = own.engine.threads if part == "engine" else own.learner.threads
    policies = map(config.of_policy, config.policy_names)
    num_parts = sum(each.rollout.workers + each.learner.ranks for each in policies)
    return chosen or max(1, (os.cpu_count() or 1) // num_parts)


def openmp(count: int) -> dict[str, Any]:
    """Threads that sleep while they wait: spinning ones take the core from the other part."""
    return {"env_vars": {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}}


def end_children_with_me() -> None:
    """What this process starts from now on ends with it, also by SIGKILL.

    Its descendants share a process group that is killed once this process is gone: an engine that is still coming up
    would wait for its dead parent for minutes.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    _after_me(f"kill -9 -{os.getpid()}")


def remove_after_me(*paths: Path) -> None:
    """Remove files and directories once this process is gone, also by SIGKILL."""
    if paths:
        _after_me(f"rm -rf {shlex.join(map(str, paths))}")


def _after_me(command: str) -> None:
    script = f"while [ -d /proc/{os.getpid()} ]; do sleep 1; done; {command}"
    # In the background of a shell that ends at once: Ray kills the children of a worker, not those of init.
    orphan = ["/bin/sh", "-c", f"({script}) &"]
    subprocess.run(orphan, process_group=0, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, check=True)


@dataclass(frozen=True)
class Segment:
    """A named piece of shared memory: path in /dev/shm, and the inode that tells it from a later one of that name."""

    path: Path
    inode: int


class CreatedSegments:
    """The named shared memory that a child's code creates while this context is open, by name.

    Three things must hold for a file of /dev/shm, or it is left alone: it appeared after the context was entered, a
    process of the group has mapped it, and its name is one that Python's, torch's or OpenMP's allocator generates. What
    a user keeps there was there before, or has a name of its own.

    Remove what was found with `remove_segments_after_me`.
    """

    def __init__(self) -> None:
        self.found: set[Segment] = set()

    def __enter__(self) -> CreatedSegments:
        self._before = set(_segments())
        return self

    def __exit__(self, *_: object) -> None:
        self.look()

    def look(self, group: int = 0) -> set[Segment]:
        """Add what the process group, by default this process's, has created since; returns all of it."""
        mapped = mapped_shared_memory(group)
        self.found |= {s for s in _segments() if s not in self._before and s.path in mapped}
        return self.found


def _segments() -> Iterator[Segment]:
    """What lies in /dev/shm under a generated name and belongs to this user."""
    for path in Path("/dev/shm").glob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if GENERATED.fullmatch(path.name) and stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
                yield Segment(path, status.st_ino)


def remove_segments_after_me(segments: Iterable[Segment]) -> None:
    """Remove these once this process is gone, also by SIGKILL; not what has taken a name meanwhile."""
    lines = [
        f'[ "$(stat -c %i {shlex.quote(str(s.path))} 2>/dev/null)" = {s.inode} ] && rm -f -- {shlex.quote(str(s.path))}'
        for s in sorted(segments, key=lambda s: s.path)
    ]
    if lines:
        _after_me("; ".join(lines))


def mapped_shared_memory(group: int = 0) -> set[Path]:
    """Files of /dev/shm that a process group, by default this one, has mapped, whoever made them."""
    found: set[Path] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if os.getpgid(int(maps.parent.name)) == (group or os.getpgrp()):
                lines = maps.read_text().splitlines()
                found |= {Path(line[line.index("/dev/shm/") :]) for line in lines if "/dev/shm/" in line}
    return {path for path in found if path.is_file()}


def cause_of(error: BaseException | None) -> BaseException | None:
    """What was raised in the actor: of groups of exceptions the one that explains them."""
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _init_failure(str(error).strip().splitlines()[-1])  # text is all Ray keeps
    if isinstance(error, RayTaskError):
        error = error.cause
    return None if error is None else root_of(error)


def _init_failure(line: str) -> KanaboError:
    """The error of an actor's constructor from the last line of its trace."""
    name, _, said = line.partition(": ")
    if name.rpartition(".")[2] == InfrastructureError.__name__:
        return InfrastructureError(said)
    return StartFailed(said if name.endswith(".StartFailed") else f"an actor could not be made: {line}")


def is_infrastructure(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(INFRASTRUCTURE)[1] is None
    return isinstance(error, INFRASTRUCTURE)


async def result(ref: Any) -> Any:
    """A Ray reference as a coroutine: tasks are made of those only."""
    return await ref


async def end(actors: Iterable[Any]) -> None:
    """Ask actors to close, so that what they started leaves with them, and kill them after a while."""
    actors = list(actors)
    asked = [asyncio.ensure_future(result(actor.close.remote())) for actor in actors]
    if asked:
        await asyncio.wait(asked, timeout=CLOSE_S)
    for actor in actors:
        ray.kill(actor)
