"""Ray on this machine or a cluster: joined or started, how its cores are shared out, and how its processes end."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import site
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster import import_path
from cluster.config import RunConfig
from cluster.errors import ConfigError, InfrastructureError, one_line
from cluster.placement.ray_address import check_address, ray_folder
from cluster.placement.resources import needed_cpus
from cluster.process.cleanup import _after_me

SPARE_PLACES = 16
"""On one machine: for workers that join later."""
STARTS, LATE = 3, "timed out during startup"
"""Ray gives its own processes 30 s, which a busy machine may not keep; the next start finds their files in memory."""
GENERATED = re.compile(
    r"psm_[0-9a-f]{8}|sem\.(mp|loky)-\w+|torch_\d+_\d+_\d+|__KMP_REGISTERED_LIB_\d+(_\d+)?|vllm_(offload|ec)_[\w-]+\.mmap"
)
"""Names in /dev/shm that Python's multiprocessing, torch and OpenMP make up."""


def start_ray(config: RunConfig) -> None:
    """Join the cluster that $RAY_ADDRESS names, or start one on this machine.

    Raises ConfigError if it cannot be joined, or if a file of the working directory hides the package `cluster`;
    InfrastructureError if it does not start.
    """
    _check_working_directory()
    if "RAY_ADDRESS" in os.environ:
        _join(os.environ["RAY_ADDRESS"])
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    for attempt in range(1, STARTS + 1):
        try:
            _start_here(config)
        except Exception as error:  # Ray raises bare ones
            ray.shutdown()
            if attempt < STARTS and LATE in str(error):
                continue
            free = f"{available_bytes() / 2**30:.1f} GiB of memory free"
            raise InfrastructureError(
                f"Ray did not start on this machine: {one_line(error)} Start the run again when the machine is less "
                f"busy (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {free}); Ray's logs are below "
                f"{ray_folder()}."
            ) from error
        return


def _start_here(config: RunConfig) -> None:
    ray.init(
        "local",  # also where another Ray runs on this machine
        # Logical places, not cores: on a laptop engine and learner share what is there.
        num_cpus=max(os.cpu_count() or 1, int(needed_cpus(config)) + SPARE_PLACES),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_python_path())}},
    )


def _join(address: str) -> None:
    """Connect to a running cluster. Raises ConfigError."""
    check_address(address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises bare ones
        raise ConfigError(
            f"RAY_ADDRESS = '{address}' cannot be joined: {one_line(error)} "
            "Start a cluster there, or unset RAY_ADDRESS to work on this machine alone."
        ) from error


def _check_working_directory() -> None:
    """Raise ConfigError if no worker could import Kanabo: Ray puts the driver's working directory first in each."""
    here = os.path.realpath(os.getcwd())
    if here != import_path.ROOT and import_path.hides(here, ("cluster",)):
        raise ConfigError(
            f"a module 'cluster' in the working directory '{here}' hides Kanabo's package of that name in every "
            "worker. Rename it, or start the run in another directory."
        )


def _python_path() -> list[str]:
    """PYTHONPATH of the workers: Kanabo's packages unless they are installed, then what the driver has there.

    Ray itself adds the working directory, which `import_path` then puts behind the packages.
    """
    installed = import_path.ROOT in {os.path.realpath(path) for path in site.getsitepackages()}
    return [*([] if installed else [import_path.ROOT]), *filter(None, [os.environ.get("PYTHONPATH")])]


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
