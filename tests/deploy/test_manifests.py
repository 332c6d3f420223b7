"""Manifests fit what KubeRay and Kubernetes accept, fit one another, and say what Kanabo needs."""

from __future__ import annotations

import copy
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
import yaml

from cluster import config
from cluster.buffer import Buffer
from cluster.buffer.server import find_server
from tests.deploy.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
ROLES = ["learner", "rollout", "judge", "reward"]
FREE_MAPS = {"labels", "matchLabels", "annotations", "selector", "nodeSelector", "data", "rayStartParams", "requests"}
FREE_MAPS |= {"limits", "clusterSelector"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[tuple[str, dict[str, Any]]]:
    files = [*sorted((KUBERAY / "base").glob("*.yaml")), KUBERAY / "rayjob.yaml"]
    found = [(path.name, d) for path in files for d in documents(path)]
    return [(f"{name}:{d['kind']}", d) for name, d in found if d["kind"] != "Kustomization"]


VALIDATORS = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in SCHEMAS.items()}


def check(document: dict[str, Any]) -> None:
    VALIDATORS[document["kind"]].validate(document)


def of_kind(kind: str) -> dict[str, Any]:
    return next(document for _, document in manifests() if document["kind"] == kind)


ALL = pytest.mark.parametrize("document", [pytest.param(d, id=name) for name, d in manifests()])


@ALL
def test_a_manifest_fits_its_schema(document):
    check(document)


def test_everything_is_there():
    kinds = sorted(document["kind"] for _, document in manifests())
    assert kinds == ["ConfigMap", "PersistentVolumeClaim", "RayCluster", "RayJob", "Service", "StatefulSet"]


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all mappings whose keys are the API's and not the user's."""
    if isinstance(node, dict):
        if path != ("spec", "metadata") and not (path and path[-1] in FREE_MAPS):
            yield path
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from places(value, (*path, i))


@ALL
def test_a_typo_anywhere_fails(document):
    for path in places(document):
        broken = copy.deepcopy(document)
        node = broken
        for key in path:
            node = node[key]
        node["replica"] = 1
        assert not VALIDATORS[document["kind"]].is_valid(broken), f"an unknown field at {path} passed"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0),  # a map of strings
        ("RayCluster", "spec.workerGroupSpecs.0.replicas", "1"),
        ("RayCluster", "spec.workerGroupSpecs.0.template", None),
        ("RayCluster", "spec.authOptions.mode", "tokens"),
        ("RayCluster", "apiVersion", "ray.io/v1alpha1"),
        ("RayCluster", "spec.workerGroupSpecs.0.labels.kanabo-role", "two words"),
        ("StatefulSet", "spec.template.spec.containers.0.ports.0.containerPort", 70000),
        ("StatefulSet", "spec.volumeClaimTemplates.0.spec.resources.requests.storage", "20 Gi"),
        ("StatefulSet", "spec.serviceName", None),
        ("PersistentVolumeClaim", "spec.accessModes.0", "ReadWriteAll"),
        ("RayJob", "spec.submissionMode", "Job"),
        ("Service", "spec.ports.0.port", "redis"),
    ],
)
def test_a_wrong_value_fails(kind, path, value):
    """None removes the field."""
    document = copy.deepcopy(of_kind(kind))
    *parents, leaf = path.split(".")
    node = document
    for key in parents:
        node = node[int(key)] if key.isdigit() else node[key]
    leaf = int(leaf) if leaf.isdigit() else leaf
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in of_kind("RayCluster")["spec"]["workerGroupSpecs"]}


def test_every_role_has_a_group_with_its_label():
    assert list(groups()) == ROLES
    for role, group in groups().items():
        assert group["labels"] == {"kanabo-role": role}
        assert group["template"]["metadata"]["labels"]["kanabo-role"] == role
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_head_runs_drivers_and_no_actors():
    head = of_kind("RayCluster")["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_cluster_asks_for_a_token_and_its_ray_is_the_locked_one():
    spec = of_kind("RayCluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    for lock in ("requirements-cpu.lock", "requirements-gpu.lock"):
        assert f"ray=={spec['rayVersion']}" in (ROOT / lock).read_text().splitlines()


def pods() -> Iterator[dict[str, Any]]:
    yield of_kind("StatefulSet")["spec"]["template"]["spec"]
    yield of_kind("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    for group in groups().values():
        yield group["template"]["spec"]


def test_what_is_mounted_and_referred_to_exists():
    claims = {of_kind("PersistentVolumeClaim")["metadata"]["name"]}
    maps = {of_kind("ConfigMap")["metadata"]["name"]}
    for pod in pods():
        templates = of_kind("StatefulSet")["spec"]["volumeClaimTemplates"]
        volumes = {v["name"] for v in pod["volumes"]} | {t["metadata"]["name"] for t in templates}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            seen = set()
            for variable in container["env"]:
                # $(NAME) is replaced only if NAME comes earlier in the list.
                assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= seen
                seen.add(variable["name"])
                if "valueFrom" in variable:
                    assert variable["valueFrom"]["secretKeyRef"] == {"name": "kanabo-redis", "key": "password"}
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        } <= claims
        assert {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v} <= maps


def test_the_redis_of_the_url_is_the_one_that_is_deployed(monkeypatch):
    head = of_kind("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    url = next(v["value"] for v in head["env"] if v["name"] == "KANABO_REDIS_URL")
    service, stateful = of_kind("Service"), of_kind("StatefulSet")
    assert f"@{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/0" in url
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    monkeypatch.setenv("KANABO_REDIS_URL", url)
    assert config.BufferSection(url="env:KANABO_REDIS_URL").resolved() == url


def test_redis_as_deployed_keeps_what_it_acknowledges_and_its_password_off_the_command_line(tmp_path):
    """The container's own script and configuration, with its three directories moved and a free port."""
    container = of_kind("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    moved = {"/etc/kanabo": tmp_path / "etc", "/run/kanabo": tmp_path / "run", "/data": tmp_path / "data"}
    for directory in moved.values():
        directory.mkdir()
    settings, script = of_kind("ConfigMap")["data"]["redis.conf"], container["command"][-1]
    for inside, outside in moved.items():
        settings, script = settings.replace(inside, str(outside)), script.replace(inside, str(outside))
    settings = settings.replace("port 6379", f"port {port}").replace("bind * -::*", "bind 127.0.0.1")
    (tmp_path / "etc" / "redis.conf").write_text(settings)
    programs = tmp_path / "programs"  # those of the image, under their names there
    programs.mkdir()
    (programs / "redis-server").symlink_to(find_server().path)
    ping = (
        "import os, sys, redis; client = redis.Redis(port=int(sys.argv[2]), password=os.environ['REDISCLI_AUTH']); "
        "print('PONG' * client.ping())"
    )
    (programs / "redis-cli").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{ping}" "$@"\n')
    (programs / "redis-cli").chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "REDIS_PASSWORD": "f00d" * 12}
    server = subprocess.Popen([*container["command"][:-1], script], env=environment, stdout=subprocess.DEVNULL)
    try:
        url = f"redis://:{environment['REDIS_PASSWORD']}@127.0.0.1:{port}/0"
        _wait_for(url)
        assert Buffer(url, "run").persistence() == []
        assert redis.Redis.from_url(url).config_get("save") == {"save": ""}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        # The shell has become the server, which so gets Kubernetes' SIGTERM; nobody can read the password off it.
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert b"redis-server" in command
        assert environment["REDIS_PASSWORD"].encode() not in command
        assert "PASSWORD" not in script.splitlines()[-1]  # Redis rewrites its command line, but only after a moment
        assert (tmp_path / "run" / "redis.conf").stat().st_mode & 0o077 == 0
        assert list((tmp_path / "data").glob("appendonly*"))
        probe = container["readinessProbe"]["exec"]["command"]
        told = subprocess.run([*probe[:-1], probe[-1].replace("redis-cli", f"redis-cli -p {port}")], env=environment)
        assert told.returncode == 0
    finally:
        server.terminate()
        assert server.wait(timeout=10) == 0


def _wait_for(url: str) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            redis.Redis.from_url(url).ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_the_job_runs_a_recipe_that_loads_and_says_which(monkeypatch):
    job = of_kind("RayJob")["spec"]
    program, recipe, *overrides = job["entrypoint"].removeprefix("python -m ").split()
    assert program == "cluster.run"
    settings = config.load(ROOT / recipe.removeprefix("/opt/kanabo/"), overrides)
    assert settings.buffer.url == "env:KANABO_REDIS_URL"
    assert job["metadata"] == {"run": settings.run.name, "recipe": recipe.removeprefix("/opt/kanabo/")}
    assert job["clusterSelector"] == {"ray.io/cluster": of_kind("RayCluster")["metadata"]["name"]}
    ours = yaml.safe_load((ROOT / "deploy" / "runtime_env.yaml").read_text())
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"] == ours["env_vars"]


def test_runs_and_models_are_on_the_volume_that_all_pods_mount():
    ours = yaml.safe_load((ROOT / "deploy" / "runtime_env.yaml").read_text())["env_vars"]
    for pod in list(pods())[1:]:
        container = pod["containers"][0]
        assert "/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert ours.items() <= {v["name"]: v.get("value") for v in container["env"]}.items()
    assert all(path.startswith("/shared/") for path in ours.values())


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_both_variants_build_and_fit(variant):
    built = subprocess.run(["kubectl", "kustomize", KUBERAY / variant], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    for document in found:
        check(document)
        assert document["metadata"]["namespace"] == "kanabo"
    cluster = next(d for d in found if d["kind"] == "RayCluster")["spec"]
    specs = [g["template"]["spec"]["containers"][0] for g in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
    assert {c["image"] for c in specs} == {f"registry.example.com/kanabo:{variant}"}
    gpus = ["nvidia.com/gpu" in c["resources"]["limits"] for c in specs]
    assert gpus == ([False, True, True, True, False] if variant == "gpu" else [False] * 5)
