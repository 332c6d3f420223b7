"""The example notebook, executed cell by cell in a kernel that has Kanabo's packages."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.end_to_end import jobs

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1500)]

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


@pytest.fixture
def python() -> Path:
    """An interpreter with Jupyter's packages and, behind them, those of this one."""
    subprocess.run([str(jobs.ROOT / "deploy/environments.sh"), "notebook"], check=True)
    environment = jobs.ROOT / ".environments/notebook"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "kanabo.pth").write_text(f"{jobs.ROOT}\n{sysconfig.get_path('purelib')}\n")
    return environment / "bin/python"


def test_the_notebook_trains_and_shows_what_was_learnt(tmp_path: Path, python: Path):
    executed = tmp_path / "executed.ipynb"
    command = [str(python), "-c", EXECUTE, str(jobs.ROOT / "examples/quickstart.ipynb"), str(tmp_path), str(executed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [cell for cell in json.loads(executed.read_text())["cells"] if cell["cell_type"] == "code"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]), "no curve"
    summary = jobs.summary(tmp_path / "runs/notebook")
    assert summary["steps"] == 30
    assert summary["eval_accuracy_final"] > summary["eval_accuracy_initial"] + 0.1
    rows = jobs.rows(tmp_path / "runs/notebook")
    rewards = [row["reward/digits_mean"] for row in rows if "reward/digits_mean" in row]
    assert sum(rewards[-5:]) > sum(rewards[:5])
