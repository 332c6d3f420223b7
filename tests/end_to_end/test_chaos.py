"""`make chaos`: whatever a job consists of is killed or stopped at random, for minutes, and nothing is lost.

`KANABO_SEED` picks another sequence, `KANABO_CHAOS_S` another length (480 s by default).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.end_to_end import jobs
from tests.end_to_end.test_pipeline import free_ports

pytestmark = [pytest.mark.job, pytest.mark.chaos, pytest.mark.timeout(1500)]

VICTIMS = {
    "rollout actor": "ray::RolloutActor",
    "engine": "VLLM::EngineCore",
    "reward worker": "ray::RewardActor",
    "learner rank": "ray::LearnerActor",
    "redis-server": "redis-server",
    "driver": "",
    "second node": "",
}
OURS = ("ray::RolloutActor", "ray::RewardActor", "ray::LearnerActor", "VLLM::", "redis-server")
PAUSE_S = 4.0
"""A driver that was stopped goes on after so long: nobody could replace it."""


@dataclass
class Cluster:
    """A head and a second node of Ray on this machine, as processes of their own."""

    directory: Path
    port: int
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, name: str, *options: str) -> None:
        ray = Path(sys.executable).with_name("ray")
        self.nodes[name] = subprocess.Popen(
            [ray, "start", "--block", "--disable-usage-stats", *options],
            env=self.environment,
            stdout=(self.directory / f"{name}.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def second(self) -> None:
        self.start("second", f"--address=127.0.0.1:{self.port}", "--num-cpus=3")

    def raylet_of_second(self) -> psutil.Process | None:
        found = [p for p in jobs.tree(self.nodes["second"]) if p.name() == "raylet"]
        return found[0] if found else None


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    port, dashboard = free_ports(2)
    short = tempfile.mkdtemp(prefix="ray")
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short, "PYTHONPATH": str(jobs.ROOT),
        "KANABO_TEST_MARKER": str(tmp_path / "marker"),
    }  # fmt: skip
    made = Cluster(tmp_path, port, environment)
    try:
        made.start("head", "--head", "--num-cpus=6", f"--port={port}", f"--dashboard-port={dashboard}")
        time.sleep(10)
        made.second()
        yield made
    finally:
        for node in made.nodes.values():
            jobs.end(node)
        shutil.rmtree(short, ignore_errors=True)


class Watcher(threading.Thread):
    """Sees every process of ours that ever was, and how many servers a run's directory has at once."""

    def __init__(self, chaos: Chaos) -> None:
        super().__init__(daemon=True)
        self.seen: dict[tuple[int, float], psutil.Process] = {}
        self.most_servers = 0
        self.ended = threading.Event()
        self._chaos = chaos

    def run(self) -> None:
        while not self.ended.wait(0.5):
            servers = 0
            for process in self._chaos.processes():
                with contextlib.suppress(psutil.NoSuchProcess):  # it has died since
                    self.seen[process.pid, process.create_time()] = process
                    working_here = Path(process.cwd()) == self._chaos.directory / "chaos" / "redis"
                    servers += process.name() == "redis-server" and working_here
            self.most_servers = max(self.most_servers, servers)


def title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0].rsplit("/", 1)[-1]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


class Chaos:
    """A job, and a hand that kills."""

    def __init__(self, cluster: Cluster, directory: Path, seed: int) -> None:
        self.cluster, self.directory = cluster, directory
        self.done: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._round: list[tuple[str, bool]] = []
        self._log = directory / "log"
        self.start()

    def start(self) -> None:
        overrides = [
            *jobs.TINY, f"run.dir={self.directory}", "run.name=chaos", "engine.use=tests.fakes:one_real_engine",
            "rollout.workers=2", "rollout.lease_s=20", "learner.drop_zero_variance=false", "learner.steps=100000",
            "learner.ranks=2", "learner.zero_stage=3", "learner.collective_timeout_s=30", "checkpoint.every_steps=3",
            "run.heartbeat_timeout_s=20", "run.max_infrastructure_failures=10000", "evaluation.every_steps=10",
            "learner.schedule={lr = 1e-6}",
        ]  # fmt: skip
        environment = self.cluster.environment | {"RAY_ADDRESS": f"127.0.0.1:{self.cluster.port}"}
        self.job = jobs.start(overrides, log=self._log, **environment)

    def processes(self, start: str | tuple[str, ...] = OURS) -> list[psutil.Process]:
        """Actors, engines and servers of this job and its cluster; those of other jobs are none of our business."""
        roots = {self.job.pid, *(node.pid for node in self.cluster.nodes.values())}
        running = {p.pid: p for p in psutil.process_iter(["ppid"])}

        def belongs(pid: int) -> bool:
            while pid in running:
                if pid in roots or session(pid) in roots:
                    return True
                pid = running[pid].info["ppid"]
            return False

        return [p for pid, p in running.items() if title(p).startswith(start) and belongs(pid)]

    def strike(self) -> None:
        """Every kind, killed and stopped, once each before any comes again."""
        if not self._round:
            self._round = [(kind, stop) for kind in VICTIMS for stop in (False, True)]
            self._round.remove(("second node", True))
            self._rng.shuffle(self._round)
        kind, stop = self._round.pop()
        if kind == "driver":
            self._strike_driver(stop)
        elif kind == "second node":
            raylet = self.cluster.raylet_of_second()
            if raylet is None:
                return
            raylet.kill()
            self.cluster.nodes["second"].wait(60)
            self.cluster.second()
        else:
            victims = self.processes(VICTIMS[kind])
            if not victims:
                return
            self._rng.choice(victims).send_signal(signal.SIGSTOP if stop else signal.SIGKILL)
        self.done[f"{kind} {'stopped' if stop else 'killed'}"] += 1

    def _strike_driver(self, stop: bool) -> None:
        if stop:
            self.job.send_signal(signal.SIGSTOP)
            time.sleep(PAUSE_S)
            self.job.send_signal(signal.SIGCONT)
        else:
            self.job.kill()
            self.job.wait(10)
            time.sleep(1)
            self.start()

    def steps(self) -> int:
        return max((r["step"] for r in jobs.rows(self.directory / "chaos") if "learner/step_s" in r), default=0)


def test_random_deaths_lose_nothing(cluster, tmp_path):
    seed, seconds = int(os.environ.get("KANABO_SEED", "0")), float(os.environ.get("KANABO_CHAOS_S", "480"))
    chaos = Chaos(cluster, tmp_path, seed)
    watcher = Watcher(chaos)
    watcher.start()
    log = tmp_path / "log"
    try:
        jobs.wait_for_step(tmp_path / "chaos", 2, chaos.job, log, timeout_s=240)
        until, rng = time.monotonic() + seconds, random.Random(seed + 1)
        while time.monotonic() < until:
            time.sleep(rng.uniform(5, 25))
            assert chaos.job.poll() is None, f"the job ended with {chaos.job.returncode}:\n{jobs.tail(log)}"
            chaos.strike()
        # Left alone it goes on: a step beyond all those so far.
        jobs.wait_for_step(tmp_path / "chaos", chaos.steps() + 2, chaos.job, log, timeout_s=240)
        memory = jobs.shared_memory(chaos.processes(), tmp_path / "chaos")
        chaos.job.send_signal(signal.SIGTERM)
        assert chaos.job.wait(90) == 0, jobs.tail(log)
        left = jobs.left_after(list(watcher.seen.values()), seconds=20)
    finally:
        watcher.ended.set()
        jobs.end(chaos.job)
    summary = jobs.summary(tmp_path / "chaos")
    print(
        json.dumps({"seed": seed, "struck": dict(chaos.done), "steps": summary["steps"], **summary["groups_dropped"]})
    )
    assert not left, "processes outlive the job"
    assert memory, "weights are published, and fetched, in shared memory"
    assert not jobs.left_of(memory), "shared memory outlives the job, of whoever died in it"
    assert watcher.most_servers == 1, "two servers in one directory"
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert summary["max_staleness_observed"] <= 1
    assert len(chaos.done) == 2 * len(VICTIMS) - 1, "something was never struck"
