"""The image can be built from what is here, and holds what manifests and README say it does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from cluster.commands import app

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
README = (ROOT / "deploy" / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(word: str, device: str = "gpu") -> list[str]:
    """Arguments of an instruction, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ").replace("${DEVICE}", device)
    return [" ".join(line.split()[1:]) for line in joined.splitlines() if line.startswith(f"{word} ")]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_is_copied_exists_and_is_sent_to_the_builder(device):
    ignored = (ROOT / "deploy" / "docker" / "Dockerfile.dockerignore").read_text().split()
    for copy in instructions("COPY", device):
        *sources, _ = [word for word in copy.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch(source, pattern) for pattern in ignored), source


def test_the_image_holds_every_package_and_recipes_where_the_job_looks():
    copied = {word for copy in instructions("COPY") for word in copy.split()}
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"deploy/recipes", "pyproject.toml", *PROJECT["project"]["license-files"]} <= copied
    job = yaml.safe_load((ROOT / "deploy" / "kuberay" / "rayjob.yaml").read_text())
    assert f"{instructions('WORKDIR')[0]}/deploy/recipes/" in job["spec"]["entrypoint"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_packages_come_from_the_lock_and_the_script_that_make_uses(device):
    assert f"KANABO_DEVICE={device} deploy/install.sh" in instructions("RUN", device)
    assert f"{device}-base" in instructions("FROM", device)
    assert any(line.endswith(f" AS {device}-base") for line in instructions("FROM", device))


def test_the_images_cuda_is_that_of_the_lock():
    (base,) = [line for line in instructions("FROM") if line.startswith("nvidia/cuda")]
    locked = re.search(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "requirements-gpu.lock").read_text(), re.M)
    assert locked
    assert base.startswith(f"nvidia/cuda:{locked[1]}.")
    assert "-devel-" in base


def test_pods_run_as_the_user_that_the_image_makes():
    cluster = yaml.safe_load((ROOT / "deploy" / "kuberay" / "base" / "raycluster.yaml").read_text())["spec"]
    user = cluster["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"useradd --uid {user} " in DOCKERFILE


def test_the_installed_command_names_what_is_there():
    module, _, function = PROJECT["project"]["scripts"]["kanabo"].partition(":")
    assert getattr(import_module(module), function) is app.main


def test_files_and_commands_of_the_readme_exist():
    for path in re.findall(r"(?<![\w/])(?:deploy|tests)/[\w./-]*\w", README):
        assert (ROOT / path).exists(), path
    named = re.findall(r"(?:^|-- |`)kanabo (\w+)", README, re.M)
    assert set(named) == set(app.COMMANDS)
    for module in re.findall(r"python -m (cluster(?:\.[a-z_]+)+)", README):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_options_of_the_readmes_submit_command_are_rays():
    """`ray job submit --help` of the locked Ray knows every option that the README uses."""
    command = README.split("ray job submit --address")[1].split("-- python")[0]
    options = {"--address", *re.findall(r"--[a-z-]+", command)}
    help_text = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--help"], capture_output=True, text=True
    ).stdout
    assert len(options) == 3
    assert all(re.search(rf"{option}(?![\w-])", help_text) for option in options)


def test_a_linter_finds_nothing_in_the_dockerfile():
    linter = ROOT / ".environments" / "lint" / "bin" / "hadolint"
    if not linter.exists():
        pytest.skip(f"{linter} is not there: make env-tests")
    told = subprocess.run(
        [linter, "--no-color", "--failure-threshold", "warning", "-"], input=DOCKERFILE, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout
