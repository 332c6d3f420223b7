"""What the files for Slurm and SkyPilot start, with programs in the place of Slurm's and of Ray."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "deploy" / "slurm" / "kanabo.sbatch"
SKYPILOT = yaml.safe_load((ROOT / "deploy" / "skypilot" / "kanabo.yaml").read_text())
NOTES = """#!/bin/sh
printf '%s\\n' "$@" > {told}
echo "$RAY_AUTH_MODE $KANABO_RUNS" > {told}.variables
"""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """Programs of Slurm that find two nodes, and a `ray` that notes what it is asked, in a checkout's .venv."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    programs = {
        "scontrol": '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n',
        "srun": '#!/bin/sh\nshift\nexec "$@"\n',
        "ray": NOTES.format(told=tmp_path / "told"),
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def started(tmp_path: Path, *command: str, **variables: str) -> tuple[list[str], list[str]]:
    """Run a command; return what follows `ray symmetric-run` before and behind the `--`."""
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == "symmetric-run"
    place = told.index("--")
    assert curate_and_validate_ray_start_args(told[1:place]) == [], "Ray starts with its own defaults"
    return told[1:place], told[place + 1 :]


def test_slurm_starts_ray_on_every_node_and_the_driver_on_the_first(tmp_path: Path, bin_folder: Path):
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "40007"}
    options, entry = started(
        tmp_path, "bash", str(SLURM), "recipe.toml", "run.name=first one", PATH=f"{bin_folder}:/usr/bin:/bin", **slurm
    )
    assert options == ["--address", "node1:20007", "--min-nodes", "2"]
    assert entry == ["env", "RAY_ADDRESS=auto", "python", "-m", "cluster.run", "recipe.toml", "run.name=first one"]
    assert (tmp_path / "told.variables").read_text().split() == ["token", str(tmp_path / "runs")]


def test_slurm_without_a_recipe_is_told_the_usage(tmp_path: Path):
    done = subprocess.run(["bash", str(SLURM)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "RECIPE" in done.stderr


def test_skypilot_starts_what_slurm_does(tmp_path: Path, bin_folder: Path):
    sky = SKYPILOT["envs"] | {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    options, entry = started(tmp_path, "bash", "-c", SKYPILOT["run"], PATH=f"{bin_folder}:/usr/bin:/bin", **sky)
    assert options == ["--address", "10.0.0.1:26379", "--min-nodes", "2"]
    assert entry == ["env", "RAY_ADDRESS=auto", "python", "-m", "cluster.run", SKYPILOT["envs"]["RECIPE"]]
    assert (ROOT / SKYPILOT["envs"]["RECIPE"]).is_file()
    assert SKYPILOT["setup"].split() == ["make", "install"]
