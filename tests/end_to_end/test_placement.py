"""Several nodes of Ray on this machine, labelled as `deploy/kuberay` labels them: who lands where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv

from cluster import config
from cluster.placement import groups
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE

pytestmark = pytest.mark.ray

NODES = {
    "learner": {"num_cpus": 4, "num_gpus": 1},
    "rollout": {"num_cpus": 4, "num_gpus": 1},
    "reward": {"num_cpus": 1},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head for drivers only and a node per role; GPUs are counted, not there."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": {"PYTHONPATH": str(jobs.ROOT)}})
    try:
        for role, room in NODES.items():
            made.add_node(labels={"kanabo-role": role}, env_vars={"PYTHONPATH": str(jobs.ROOT)}, **room)
        made.wait_for_nodes()
        ray.init(made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


class Where:
    def node(self) -> tuple[str, list[str]]:
        return ray.get_runtime_context().get_node_id(), ray.get_runtime_context().get_accelerator_ids()["GPU"]


def node_of(role: str) -> str:
    return next(n["NodeID"] for n in ray.nodes() if n["Labels"].get("kanabo-role") == role)


def place(settings, run_id: str, role: str, **how):
    return ray.remote(Where).options(**groups.options(settings, run_id, role, **how)).remote()


def end(*workers) -> None:
    for worker in workers:
        ray.kill(worker)


def test_roles_go_to_nodes_with_their_label_and_the_learners_room_stays_theirs(cluster):
    settings = config.parse({"placement": {"layout": "separated"}})
    groups.check(settings)
    groups.reserve(settings, "apart")
    engine, reward = place(settings, "apart", "rollout"), place(settings, "apart", "reward")
    for role, worker in {"rollout": engine, "reward": reward}.items():
        assert ray.get(worker.node.remote(), timeout=60)[0] == node_of(role)
    for _ in range(2):  # a rank that has died comes back to the same place
        rank = place(settings, "apart", "learner", rank=0)
        assert ray.get(rank.node.remote(), timeout=60)[0] == node_of("learner")
        end(rank)
    ray.util.remove_placement_group(ray.util.get_placement_group("kanabo:apart:learner"))
    end(engine, reward)


def test_an_engine_beside_a_learner_shares_its_node_and_its_gpu(cluster):
    settings = config.parse(
        {"placement": {"layout": "colocated"}, "rollout": {"workers": 2}, "engine": {"gpu_memory_frac": 0.4}}
    )
    groups.check(settings)
    groups.reserve(settings, "together")
    rank = place(settings, "together", "learner", rank=0)
    engines = [place(settings, "together", "rollout", beside=True) for _ in range(2)]
    seen = ray.get([worker.node.remote() for worker in (rank, *engines)], timeout=60)
    assert len({node for node, _ in seen}) == 1
    assert all(gpus == ["0"] for _, gpus in seen)
    later = place(settings, "together", "rollout")
    assert ray.get(later.node.remote(), timeout=60)[0] != seen[0][0], "the fourth has a GPU of its own"
    ray.util.remove_placement_group(ray.util.get_placement_group("kanabo:together:learner"))
    end(rank, *engines, later)


def asked() -> list[dict]:
    """What the autoscaler is asked for."""
    return json.loads(internal_kv._internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL))


def test_the_autoscaler_is_asked_for_the_room_of_all(cluster):
    groups.request(config.parse({}), {"rollout": 3, "reward": 1})
    assert asked() == [{"CPU": 1, "GPU": 1}] * 4 + [{"CPU": 0.1}]
    groups.request(config.parse({}), None)
    assert asked() == []


def run(cluster: Cluster, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.run", str(jobs.ROOT / "deploy/recipes/quickstart.toml"), *arguments],
        cwd=jobs.ROOT, env=os.environ | {"RAY_ADDRESS": cluster.address}, text=True, capture_output=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


JUDGED = ["judges.critic.kind=vllm", "judges.critic.model=smollm2", "judges.critic.gpus=0.5"]


def test_a_dry_run_names_what_the_cluster_cannot_place_and_on_which_label(cluster, tmp_path):
    options = ["--dry-run", f"run.dir={tmp_path}", "placement.layout=separated"]
    code, said = run(cluster, *options)
    assert (code, f"The cluster at {cluster.address} has room for all of it." in said) == (0, True), said
    code, said = run(cluster, *options, *JUDGED, "rollout.workers=2")
    assert code == 2
    assert "rollout: 1 of 2 places with 1 CPU, 1 GPU on nodes with kanabo-role=rollout" in said
    judge = "judge:critic: 1 of 1 places with 1 CPU, 0.5 GPU on nodes with kanabo-role=judge"
    assert f"{judge} (no node has kanabo-role=judge)" in said
    code, said = run(cluster, "--dry-run", f"run.dir={tmp_path}", "placement.layout=colocated")
    assert code == 2
    assert "would take 0.9 of its memory" in said
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.job
@pytest.mark.verify
@pytest.mark.parametrize("layout", ["separated", "colocated"])
def test_a_run_in_each_layout_places_successors_as_it_placed_the_first(cluster, tmp_path, layout):
    log, directory = tmp_path / "log", tmp_path / layout
    options = [
        *FAKE, f"run.dir={tmp_path}", f"run.name={layout}", "learner.steps=40", f"placement.layout={layout}",
        "engine.gpu_memory_frac=0.4", "engine.options.delay_s=0.2", "autoscaling.rollout.max_workers=1",
    ]  # fmt: skip
    process = jobs.start(options, log=log, RAY_ADDRESS=cluster.address)

    def seen(what: str) -> dict[str, Any]:
        prefix = f"kanabo:{(directory / 'id').read_text()}:"
        return {a["Name"].removeprefix(prefix): a[what] for a in actors().values() if a["Name"].startswith(prefix)}

    try:
        jobs.wait_for_step(directory, 2, process, log, timeout_s=120)
        alone = {"CPU": 1, "GPU": 1}
        assert asked() == ([alone, alone] if layout == "separated" else [{"CPU": 2, "GPU": 1}]) + [{"CPU": 0.1}]
        os.kill(seen("Pid")["rollout-0"], signal.SIGKILL)
        assert process.wait(150) == 0, jobs.tail(log)
    finally:
        jobs.end(process)
    assert asked() == [], "the request is taken back"
    assert jobs.summary(directory)["groups_lost"] == 0
    assert "rollout-0 died (1 of 8)" in log.read_text()
    nodes = {name: address["NodeID"] for name, address in seen("Address").items()}
    engines, rank = {nodes["rollout-0"], nodes["rollout-1"]}, nodes["policy:learner:0"]
    if layout == "separated":
        assert (engines, rank) == ({node_of("rollout")}, node_of("learner"))
    else:
        assert engines == {rank}
