"""A run that has its machine to itself: no other machine reaches its servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import ipaddress, json, psutil
from cluster import run
run.stay_on_loopback()
import ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
from cluster.placement import ray_runtime

@ray.remote
class Worker:
    def address(self):
        return ray.util.get_node_ip_address()

seen = {"worker": ray.get(Worker.remote().address.remote()), "metrics": ray_runtime.scraped_at()}
me = psutil.Process()
listening = {
    (process.name(), connection.laddr.ip)
    for process in [me, *me.children(recursive=True)]
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
}
seen["listening"] = sorted(listening)
ray.shutdown()
print("SEEN" + json.dumps(seen))
"""


@pytest.mark.ray
def test_rays_servers_listen_on_loopback_alone():
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, env=environment)
    assert told.returncode == 0, told.stderr
    seen = json.loads(told.stdout.rpartition("SEEN")[2])
    assert seen["worker"] == "127.0.0.1"
    assert seen["metrics"].startswith("http://127.0.0.1:")
    assert len(seen["listening"]) > 3, "Ray is there"
    assert {address for _, address in seen["listening"]} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, seen["listening"]
