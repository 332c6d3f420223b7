"""Ray on this machine or a cluster: joined or started, what it can hold, and how its cores are shared out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

from cluster.config import POLICY, JudgeSection, RunConfig
from cluster.errors import ConfigError, InfrastructureError, one_line

INFRASTRUCTURE = (
    InfrastructureError, RayActorError, ActorUnschedulableError, NodeDiedError, ObjectLostError, OutOfMemoryError,
    WorkerCrashedError,
)  # fmt: skip
"""What a worker may die of and be replaced."""
SPARE_PLACES = 16
"""On one machine: for workers that join later."""
CLOSE_S = 20.0
"""For actors to close before they are killed."""
JOIN_S = 10.0
"""A cluster's head answers within this time, or it is not there."""


def needed_cpus(config: RunConfig) -> float:
    judges = sum(judge.replicas * judge.cpus for judge in _placed(config).values())
    return (
        sum(own.rollout.workers + own.learner.ranks for own in _policies(config))
        + 0.1 * config.reward_workers.workers
        + len(config.distilled)
        + judges
    )


def _policies(config: RunConfig) -> list[RunConfig]:
    """The recipe as each policy has it."""
    return [config.of_policy(name) for name in config.policy_names]


def _placed(config: RunConfig) -> dict[str, JudgeSection]:
    """Judges that take room of their own."""
    return {name: judge for name, judge in config.judges.items() if judge.kind == "vllm"}


def start_ray(config: RunConfig) -> None:
    """Join the cluster that $RAY_ADDRESS names, or start one on this machine.

    Raises ConfigError if it cannot be joined.
    """
    if "RAY_ADDRESS" in os.environ:
        _join(os.environ["RAY_ADDRESS"])
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        # Logical places, not cores: on a laptop engine and learner share what is there.
        num_cpus=max(os.cpu_count() or 1, int(needed_cpus(config)) + SPARE_PLACES),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), *_python_path()])}},
    )


def _join(address: str) -> None:
    """Connect to a running cluster. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and "/" not in host:
            # Asked first, because Ray tries for minutes where nobody listens.
            socket.create_connection((host.strip("[]"), int(port)), timeout=JOIN_S).close()
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"RAY_ADDRESS = '{address}' cannot be joined: {one_line(error)} "
            "Start a cluster there, or unset RAY_ADDRESS and the run starts one on this machine."
        ) from error


def _python_path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []


def settle() -> None:
    """First thing in every process: ninja, which DeepSpeed compiles with, lives beside the interpreter."""
    beside = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != beside:
        os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def reachable_address() -> str:
    """Where this process can be reached by the run's actors: the loopback interface, unless there are other nodes."""
    return ray.util.get_node_ip_address() if "RAY_ADDRESS" in os.environ else "127.0.0.1"


def check_placement(config: RunConfig) -> None:
    """Raises ConfigError if the cluster, as it is now, cannot hold what the recipe asks for."""
    if config.weights.transport == "nccl" and not on_gpu():
        raise ConfigError(
            "weights.transport = 'nccl' needs GPUs, and the cluster has none. "
            "Set weights.transport=pull, or submit the job to a cluster with GPUs."
        )
    gpu = {"GPU": 1.0} if on_gpu() else {}
    bundles: list[dict[str, float]] = []
    for own in _policies(config):
        engine = {"CPU": 1.0, **{k: v * own.engine.tensor_parallel for k, v in gpu.items()}}
        bundles += [engine] * own.rollout.workers + [{"CPU": 1.0, **gpu}] * own.learner.ranks
    bundles += [{"CPU": 0.1}] * config.reward_workers.workers + [{"CPU": 1.0}] * len(config.distilled)
    judges = _placed(config)
    for judge in judges.values():
        bundles += [{"CPU": judge.cpus, **dict.fromkeys(gpu, judge.gpus)}] * judge.replicas
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if missing := unplaceable(bundles, nodes):
        have = [", ".join(f"{node.get(k, 0):g} {k}" for k in ("CPU", *gpu)) for node in nodes]
        policies = "".join(f", those of policies.{name}" for name in config.policies)
        replicas = "".join(f", judges.{name}.replicas = {judge.replicas}" for name, judge in judges.items())
        raise ConfigError(
            f"the cluster cannot hold rollout.workers = {config.rollout.workers}{replicas} and learner.ranks = "
            f"{config.learner.ranks}{policies}: there is no room for {missing}. Its nodes have {'; '.join(have)}. "
            f"Lower rollout.workers, learner.ranks{', replicas, cpus or gpus of judges' if judges else ''} or "
            "engine.tensor_parallel, or add nodes."
        )


def unplaceable(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> str:
    """What of `bundles` finds no node, each being for one process: "2 of 4 × {GPU: 2}; the largest …", or nothing.

    First fit, the largest first: exact where all bundles of a kind are equal, as they are here, up to packing.
    """
    left = [dict(node) for node in nodes]
    homeless: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for bundle in sorted(bundles, key=lambda b: [b.get("GPU", 0), b.get("CPU", 0)], reverse=True):
        kind = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount)
        asked[kind] += 1
        home = next((n for n in left if all(n.get(k, 0) >= v - 1e-9 for k, v in bundle.items())), None)
        if home is None:
            homeless[kind] += 1
            continue
        for name, amount in bundle.items():
            home[name] = home.get(name, 0) - amount
    return "; ".join(f"{count} of {asked[kind]} places with {kind}" for kind, count in homeless.items())


def scraped_at() -> str:
    """Where Prometheus finds this node's metrics, the run's among them."""
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    return f"http://{here['NodeManagerAddress']}:{here['MetricsExportPort']}/metrics"


def on_gpu() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


def threads(config: RunConfig, part: str, policy: str = POLICY) -> int:
    """CPU threads for one `engine` or one `learner` rank: by default the cores are shared out evenly.

    More threads than cores make both slower: on two cores a step of the quickstart takes 0.8 s with one each, 2.4 s
    with two for the learner.
    """
    own = config.of_policy(policy)
    chosen = own.engine.threads if part == "engine" else own.learner.threads
    num_parts = sum(each.rollout.workers + each.learner.ranks for each in _policies(config))
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


def shared_memory_of_children() -> set[Path]:
    """Named shared memory that this process group has mapped; it outlives its processes when they are killed."""
    found: set[Path] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if os.getpgid(int(maps.parent.name)) == os.getpgrp():
                lines = maps.read_text().splitlines()
                found |= {Path(line[line.index("/dev/shm/") :]) for line in lines if "/dev/shm/" in line}
    return {path for path in found if path.is_file()}


def cause_of(error: BaseException | None) -> BaseException | None:
    """What was raised in the actor."""
    return error.cause if isinstance(error, RayTaskError) else error


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
