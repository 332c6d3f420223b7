"""A cluster of Ray on this machine whose autoscaler starts and ends nodes, by Ray's fake provider of nodes.

`ray.cluster_utils.AutoscalingCluster` does the same, but ends every Ray of the machine before and after, and needs a
file that Ray's package lacks.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.autoscaler.v2.sdk import get_cluster_status

from tests.end_to_end import jobs

PROVIDER = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
HEAD = FAKE_HEAD_NODE_TYPE


class Autoscaling:
    """What the autoscaler has, and what it is asked for."""

    def __init__(self, address: str) -> None:
        self.address = address

    def nodes(self) -> Counter[str]:
        """How many of each type are up, the head aside."""
        status = get_cluster_status(self.address)
        return Counter(n.ray_node_type_name for n in status.active_nodes + status.idle_nodes) - Counter([HEAD])

    def asked(self) -> Counter[str]:
        """By `request_resources`: "CPU 1" → bundles."""
        found: Counter[str] = Counter()
        for demand in get_cluster_status(self.address).resource_demands.cluster_constraint_demand:
            for bundle in demand.bundles_by_count:
                found[", ".join(f"{k} {v:g}" for k, v in sorted(bundle.bundle.items()))] += bundle.count
        return found


@contextmanager
def autoscaling(
    cpus: int, types: dict[str, dict[str, Any]], *, labels: dict[str, str], idle_s: float
) -> Iterator[Autoscaling]:
    """A head with so many CPUs, and types of nodes; one that has been idle for so long is ended."""
    directory = Path(tempfile.mkdtemp(prefix="kanabo-ray-"))  # a socket's path is short
    port = _free_port()
    address = f"127.0.0.1:{port}"
    settings = directory / "cluster.json"
    settings.write_text(json.dumps(_settings(cpus, types, labels, idle_s, address)))
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PYTHONPATH": str(jobs.ROOT), "RAY_AUTH_MODE": "disabled",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_FAKE_CLUSTER": "1", "RAY_NODE_TYPE_NAME": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_enable_autoscaler_v2": "1",
    }  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}",
        "--node-ip-address=127.0.0.1", f"--labels={_pairs(labels)}", f"--autoscaling-config={settings}",
        "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={directory / 'ray'}",
    ]  # fmt: skip
    log = directory / "log"
    head = subprocess.Popen(
        command, env=environment, cwd=jobs.ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        _wait_for(address, head, log)
        yield Autoscaling(address)
    finally:
        started = jobs.tree(head)
        head.terminate()
        jobs.left_after(started, 20)
        jobs.end(head)
        shutil.rmtree(directory, ignore_errors=True)  # what the last of them still writes is nobody's


def _settings(
    cpus: int, types: dict[str, dict[str, Any]], labels: dict[str, str], idle_s: float, address: str
) -> dict[str, Any]:
    head = {"resources": {"CPU": cpus}, "node_config": {}, "labels": labels, "max_workers": 0}
    workers = {name: {"node_config": {}, "min_workers": 0, "max_workers": 2, **kind} for name, kind in types.items()}
    return {
        "cluster_name": "autoscaling",
        "max_workers": 4,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: head, **workers},
        **{f"{what}_commands": [] for what in ("setup", "head_setup", "worker_setup", "initialization")},
        **{f"{what}_start_ray_commands": [] for what in ("head", "worker")},
        "cluster_synced_files": [],
        "file_mounts": {},
    }


def _wait_for(address: str, head: subprocess.Popen, log: Path) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 60
    while True:
        assert head.poll() is None, f"the head ended with {head.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the head does not answer:\n{log.read_text()}"
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0 and "Ray runtime started" in log.read_text():
                return
        time.sleep(0.2)


def _pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
