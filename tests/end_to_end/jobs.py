"""Starts the main job as a user does, in a process of its own, and cleans up what a killed one leaves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CLEAN_UP_S = 10.0
TINY = [
    "engine.max_model_len=320",
    "engine.kv_cache_gib=0.25",
    "engine.max_num_seqs=128",
    "learner.groups_per_step=8",
    "rollout.group_size=8",
    "evaluation.max_tasks=64",
    "tracking.live_table=false",
]


def command(recipe: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "cluster.run", str(ROOT / "deploy" / "recipes" / recipe), *overrides]


def start(overrides: list[str], *, recipe: str = "quickstart.toml", log: Path, **environment: str) -> subprocess.Popen:
    """The job in a session of its own, so that a test can end whatever it started."""
    assert "PYTEST_XDIST_WORKER" not in os.environ, "a test that starts a job needs pytest.mark.job"
    return subprocess.Popen(
        command(recipe, overrides),
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"} | environment,
        stdout=log.open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, log: Path, timeout_s: float) -> int:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the job did not end within {timeout_s} s:\n{tail(log)}") from None
    finally:
        end(process)


def run(overrides: list[str], *, log: Path, timeout_s: float, **options) -> int:
    return finish(start(overrides, log=log, **options), log, timeout_s)


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    """The job's processes, Ray's and the engines' included: all of its session, and what they started."""
    found = []
    for candidate in psutil.process_iter():
        try:
            if os.getsid(candidate.pid) == process.pid or candidate.pid == process.pid:
                found += [candidate, *candidate.children(recursive=True)]
        except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue
    return list({p.pid: p for p in found}.values())


def left_after(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Names of those that still run when the time is up.

    The dead that nobody reaps do not count, nor do Ray's two agents of a node, which hold nothing and leave when they
    notice, after a minute or more.
    """
    deadline = time.monotonic() + seconds
    while left := [p for p in processes if _runs(p)]:
        if time.monotonic() > deadline:
            return [f"{p.pid} {p.name()}" for p in left if _runs(p)]
        time.sleep(0.5)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        name = process.name()
        if name.startswith(("ray::DashboardA", "ray::RuntimeEnv")):
            return False
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shared_memory(processes: list[psutil.Process], directory: Path) -> set[Path]:
    """What a job's processes have under a name in /dev/shm: files that they map, and the run's own folders."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            found |= {Path(line[line.index("/dev/shm/") :]) for line in lines if "/dev/shm/" in line}
    run_id = (directory / "id").read_text()
    return {path for path in found if path.exists()} | set(Path("/dev/shm").glob(f"kanabo-*{run_id[-6:]}-*"))


def left_of(paths: set[Path], seconds: float = 5.0) -> list[Path]:
    """Those that are still there when the time is up."""
    deadline = time.monotonic() + seconds
    while left := [path for path in paths if path.exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return left


def end(process: subprocess.Popen) -> None:
    """Kill what is left of the job; those who clean up after the dead may do so first."""
    for _ in range(3):
        for left in tree(process):
            if not _cleans_up(left):
                _kill(left)
    process.wait(30)
    for left in psutil.wait_procs(tree(process), timeout=CLEAN_UP_S)[1]:
        _kill(left)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _cleans_up(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return command[:1] == ["/bin/sh"] or any("multiprocessing.resource_tracker" in part for part in command)


def tail(log: Path, characters: int = 3000) -> str:
    return log.read_text()[-characters:]


def rows(directory: Path) -> list[dict]:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_step(directory: Path, step: int, process: subprocess.Popen, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(r["step"] >= step and "learner/step_s" in r for r in rows(directory)):
            return
        assert process.poll() is None, f"the job ended early with {process.returncode}:\n{tail(log)}"
        time.sleep(0.2)
    raise AssertionError(f"no step {step} within {timeout_s} s:\n{tail(log)}")


def summary(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())
