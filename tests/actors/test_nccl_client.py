"""The GPU transport as far as a machine without GPUs can see it: vLLM's stock trainer client drives our actor."""

from __future__ import annotations

import json
import os

import pytest

from cluster import workers
from cluster.config import parse
from cluster.placement import ray_runtime
from tests.fakes import FakeEngine
from tests.models import random_llama


class RecordingEngine(FakeEngine):
    """Writes down, in a file that the test reads, which of the transport's calls arrive and with what."""

    def _note(self, call, argument=None):
        with open(os.environ["KANABO_TEST_CALLS"], "a") as file:
            file.write(json.dumps([call, argument]) + "\n")

    async def init_weight_transfer_engine(self, request):
        self._note("init", request.init_info)

    async def start_weight_update(self):
        self._note("start")

    async def update_weights(self, request):
        self._note("update", request.update_info)

    async def finish_weight_update(self):
        self._note("finish")

    async def update_weight_version(self, version):
        self._note("version", version)
        self.version = version

    async def shutdown_weight_transfer_engine(self):
        self._note("shutdown")


@pytest.fixture
def local_ray(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("KANABO_TEST_CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = parse({"engine": {"use": "tests.actors.test_nccl_client:RecordingEngine", "max_model_len": 320}})
    ray_runtime.start_ray(config)
    yield config
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.verify
def test_vllms_stock_client_drives_a_rollout_actor(tmp_path, local_ray, redis_url):
    import ray
    from vllm.distributed.weight_transfer import RayVLLMWeightSyncClient

    context = workers.RunContext(
        local_ray, str(random_llama(tmp_path / "model", tied=False)), redis_url, "nccl", str(tmp_path)
    )
    actor = workers.place_rollout(context, "rollout-0")
    ray.get(actor.ready.remote(), timeout=120)
    client = RayVLLMWeightSyncClient([actor])
    client.init_weight_transfer_engine({"master_address": "10.0.0.1", "world_size": 2})
    client.start_weight_update()
    client.update_weights({"names": ["a"], "shapes": [[1]]})
    client.finish_weight_update("1.7")
    client.shutdown_weight_transfer_engine()
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [
        ["init", {"master_address": "10.0.0.1", "world_size": 2}],
        ["start", None],
        ["update", {"names": ["a"], "shapes": [[1]]}],
        ["finish", None],
        ["version", "1.7"],
        ["shutdown", None],
    ]
