"""The whole pipeline against TRL's GRPOTrainer, with an environment of its own: same model, task, batch and lengths.

TRL samples with transformers, which is what works on a CPU: it pushes weights into vLLM with `model.load_weights`, and
vLLM's CPU build goes on with the packed copies of the old ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import iterations
from tests.bench.figures import Figure

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements-trl.txt"
PAIRS = int(os.environ.get("KANABO_BENCH_PAIRS", "3"))
STEPS = {"fixed": (12, 4), "lognormal": (12, 3)}
"""Of a run of ours, and of TRL's."""


def measure() -> list[Figure]:
    from actors.models import prepare
    from cluster.config import ModelSection

    python, model_dir = trl_python(), prepare(ModelSection(path="tiny:addition"), seed=0)
    with tempfile.TemporaryDirectory() as directory:
        return [_measure(kind, python, model_dir, Path(directory)) for kind in STEPS]


def _measure(kind: str, python: Path, model_dir: Path, directory: Path) -> Figure:
    ours: list[iterations.Run] = []
    other: list[dict[str, Any]] = []
    for pair in range(PAIRS):
        ours.append(iterations.run(directory, f"{kind}-{pair}", kind, steps=STEPS[kind][0]))
        other.append(_trl(python, model_dir, kind, STEPS[kind][1], directory / f"{kind}-{pair}-trl.json"))
    longer = ours[0].mean("rollout/length_tokens") / other[0]["trained_mean_tokens"]
    assert 0.8 < longer < 1.25, f"{kind}: ours are {longer:.2f} times as long as TRL's: another task"
    details = {
        "mean_tokens": ours[0].mean("rollout/length_tokens"),
        "trl_mean_tokens": other[0]["trained_mean_tokens"],
        "trl": other[0]["version"],
        "waiting_frac": sum(r.mean("learner/wait_s") for r in ours) / sum(r.mean("learner/step_s") for r in ours),
        "trl_sampling_frac": other[0]["sampling_frac"],
    }
    rates = [r.samples_per_s for r in ours], [r["samples_per_s"] for r in other]
    return Figure(f"e2e_vs_trl_{kind}", "samples/s", *rates, None, details)


def _trl(python: Path, model_dir: Path, kind: str, steps: int, out: Path) -> dict[str, Any]:
    arguments = [python, HERE / "trl_side.py", model_dir, kind, str(steps), out]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=iterations.TIMEOUT_S, env=_plain_environment()
    )
    assert done.returncode == 0, f"TRL failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return json.loads(out.read_text())


def _plain_environment() -> dict[str, str]:
    """Without our own interpreter and packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def trl_python() -> Path:
    """The interpreter of an environment that holds `requirements-trl.txt`, made once and kept in the cache."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    root = Path(os.environ.get("KANABO_CACHE", "~/.cache/kanabo")).expanduser() / f"bench-trl-{digest}"
    python, complete = root / "bin" / "python", root / "complete"
    if not complete.exists():
        print(f"making {root}, once (1 GB, 3 min)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", root], check=True)
        pip = [python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--no-deps"]
        torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
        if subprocess.run([*pip, torch], stderr=subprocess.DEVNULL).returncode:  # a mirror may have the CPU build
            subprocess.run([*pip, "--index-url", "https://download.pytorch.org/whl/cpu", torch], check=True)
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        complete.touch()
    return python
