"""Does ONI help here? Every cell of docs/minihack.md: `python -m tests.experiments.minihack` (`make minihack`).

Each cell is a run of deploy/recipes/oni_minihack.toml with overrides, in `runs/minihack`. What is finished is in
docs/minihack.json and is not run again, a run that was interrupted goes on from its last checkpoint, and table and plot
are drawn anew after each: the command can be ended at any time and continues where it left off.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cluster.observability import metrics

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
RECIPE = "deploy/recipes/oni_minihack.toml"
RESULTS, TABLE, PLOT = (ROOT / "docs" / f"minihack.{end}" for end in ("json", "md", "png"))
STEPS = 40
"""Of a run: two thirds of the recipe's, in which the policy begins to learn; about two minutes on two cores."""
LAST = 10
"""Success is the mean over so many steps."""

SIMPLE = ["reward_models.oni.options={}"]
METHODS = {
    "extrinsic": ["rewards.1.weight=0.0"],
    "retrieval": ["reward_models.oni.use=retrieval", *SIMPLE],
    "classification": ["reward_models.oni.use=classification"],
    "ranking": ["reward_models.oni.use=ranking"],
}
SEEDS = (0, 1, 2)
SLOW = ["reward_models.oni.batch_size=1", "reward_models.oni.max_in_flight=1"]


def judge(**options: float) -> str:
    given = {"keywords": ["apple", "apples"], **options}
    return "judges.judge.options={" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in given.items()) + "}"


def bonus(beta: float) -> str:
    return "rewards.1.options={" + f"alpha_ext = 0.0, alpha_int = 0.4, beta = {beta}" + "}"


ABLATIONS = {
    "beta 0": [bonus(0.0)],
    "beta 1": [bonus(1.0)],
    "slow judge, newest first": [judge(latency_s=2.0), *SLOW],
    "slow judge, oldest first": [judge(latency_s=2.0), *SLOW, "reward_models.oni.order=oldest"],
    "labels for 10 %": [judge(unreadable_rate=0.9)],
    "10 % of labels wrong": [judge(noise_rate=0.1)],
    "30 % of labels wrong": [judge(noise_rate=0.3)],
}
"""Of classification, seed 0: what the base cell has is β = 3, an immediate judge, labels for all, none wrong."""


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def run(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.key)


CELLS = [Cell(name, seed, tuple(how)) for seed in SEEDS for name, how in METHODS.items()]
# Beside the first seed of the methods: with what there is after an hour one can already see something.
CELLS[4:4] = [Cell(name, 0, tuple(how)) for name, how in ABLATIONS.items()]


def main(
    only: Annotated[str, typer.Option(help="Cells whose name holds this.")] = "",
    limit: Annotated[int, typer.Option(help="Run at most so many.")] = len(CELLS),
    timeout_s: Annotated[float, typer.Option(help="Of one run.")] = 7200.0,
    draw: Annotated[bool, typer.Option("--draw", help="Only write table and plot.")] = False,
) -> None:
    """Run the cells that are not finished yet, and write table and plot."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    waiting = [cell for cell in CELLS if cell.key not in results and only in cell.name]
    for cell in [] if draw else waiting[:limit]:
        log.info("%s", cell.key)
        results[cell.key] = play(cell, timeout_s)
        _write(RESULTS, json.dumps(results, indent=1) + "\n")
        _show(results)
    _show(results)


def play(cell: Cell, timeout_s: float) -> dict[str, Any]:
    """Run a cell to its end, or go on with it; what came out. Raises CalledProcessError, TimeoutExpired."""
    directory = ROOT / "runs" / "minihack"
    overrides = [
        f"run.dir={directory}", f"run.name={cell.run}", f"seed={cell.seed}", f"learner.steps={STEPS}",
        "tracking.live_table=false", "tracking.tensorboard=false", "console.enabled=false", "checkpoint.every_steps=20",
        "evaluation.every_steps=20", *cell.overrides,
    ]  # fmt: skip
    command = [sys.executable, "-m", "cluster.run", RECIPE, *overrides]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{cell.run}.log").open("a") as output:
        subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=True,
        )
    steps = curves(directory / cell.run)["steps"][-1]
    if steps < STEPS:
        raise SystemExit(f"{cell.key} was stopped at step {steps} of {STEPS}; the next call goes on from there.")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"commit": commit.stdout.strip(), "overrides": list(cell.overrides), **curves(directory / cell.run)}


def curves(run: Path) -> dict[str, Any]:
    """Success of the sampled episodes and of evaluation games by step, and how labels stood at the end."""
    rows = metrics.read(run)
    steps = [row for row in rows if "reward/environment_mean" in row]
    evaluation = {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row}
    last: dict[str, float] = {}
    for row in rows:
        last |= {name: value for name, value in row.items() if name.startswith("reward_model/")}
    return {
        "steps": [row["step"] for row in steps],
        "success": [round(row["reward/environment_mean"], 5) for row in steps],
        "bonus": [round(row.get("reward/oni_mean", float("nan")), 5) for row in steps],
        "evaluation": evaluation,
        "reward_models": {name.removeprefix("reward_model/oni_"): value for name, value in last.items()},
        "seconds": round(json.loads((run / "summary.json").read_text())["wall_s"]),
    }


# ── table and plot ──────────────────────────────────────────────────────────────────────────────────────────────


def _show(results: dict[str, Any]) -> None:
    _write(TABLE, table(results))
    plot(results)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    draft.replace(path)


def success(result: dict[str, Any]) -> tuple[float, float, float]:
    """Share of sampled episodes that succeed: over the whole run, its first and its last steps."""
    values = result["success"]
    return float(np.mean(values)), float(np.mean(values[:LAST])), float(np.mean(values[-LAST:]))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(values: list[float]) -> str:
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{100 * v:.1f}' for v in values)})"


def table(results: dict[str, Any]) -> str:
    lines = [
        "<!-- written by `python -m tests.experiments.minihack`; do not edit -->",
        "# ONI on MiniHack: with and without",
        "",
        f"Recipe: `{RECIPE}`, whose head says what the task is. Success in percent of the sampled episodes, 96 a step;",
        f"the first and the last {LAST} steps, the whole run, and 64 evaluation games after the last step.",
        "Means over seeds, each seed in brackets. `make minihack` runs what is missing and writes this page.",
        "",
        "![success by step](minihack.png)",
        "",
        _row(["reward", "seeds", "first steps", "last steps", "whole run", "held out"]),
        _row(["---"] * 6),
    ]
    for name in METHODS:
        found = [results[c.key] for c in CELLS if c.name == name and c.key in results]
        lines += [_summary(name, found)] if found else []
    lines += ["", "Ablations of classification, seed 0:", ""]
    lines += [_row(["changed", "seeds", "first steps", "last steps", "whole run", "held out"]), _row(["---"] * 6)]
    base = Cell("classification", 0, ()).key
    lines += [_summary("nothing", [results[base]])] if base in results else []
    lines += [
        _summary(name, [results[Cell(name, 0, ()).key]]) for name in ABLATIONS if Cell(name, 0, ()).key in results
    ]
    lines += ["", "Labels at the end of each run, and the commit it was made with:", ""]
    lines += [
        _row(["cell", "labels", "good", "coverage", "agreement", "versions", "seconds", "commit"]),
        _row(["---"] * 8),
    ]
    for cell in CELLS:
        if cell.key in results:
            lines.append(_labels(cell.key, results[cell.key]))
    missing = [cell.key for cell in CELLS if cell.key not in results]
    lines += ["", f"Not run yet: {'; '.join(missing)}." if missing else "All cells have been run.", ""]
    return "\n".join(lines)


def _summary(name: str, found: list[dict[str, Any]]) -> str:
    whole, first, last = zip(*map(success, found), strict=True)
    evaluation = [r["evaluation"][max(r["evaluation"], key=int)] for r in found if r["evaluation"]]
    columns = [
        _percent(list(first)),
        _percent(list(last)),
        _percent(list(whole)),
        _percent(evaluation) if evaluation else "-",
    ]
    return _row([name, str(len(found)), *columns])


def _labels(key: str, result: dict[str, Any]) -> str:
    told = result["reward_models"]

    def number(name: str, form: str) -> str:
        value = told.get(name)  # none where it is not a number: what has no held-out labels agrees with nothing
        return "-" if value is None else format(value, form)

    shares = [number(name, ".2f") for name in ("good_frac", "coverage_frac", "agreement_frac")]
    counts = [number("num_labels", ".0f"), *shares, number("version", ".0f")]
    return _row([key, *counts, str(result["seconds"]), result["commit"]])


def plot(results: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for name in METHODS:
        _draw(left, name, [results[c.key] for c in CELLS if c.name == name and c.key in results])
    _draw(right, "classification", [results[k] for k in [Cell("classification", 0, ()).key] if k in results])
    for name in ABLATIONS:
        _draw(right, name, [results[k] for k in [Cell(name, 0, ()).key] if k in results])
    for axes, title in ((left, "methods, all seeds"), (right, "ablations of classification, seed 0")):
        axes.set(title=title, xlabel="optimiser step (96 episodes each)", ylabel="success, mean of 10 steps")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)
    plt.close(figure)


def _draw(axes: Any, name: str, found: list[dict[str, Any]]) -> None:
    """The seeds' mean, and each of them thin."""
    if not found:
        return
    smooth = [np.convolve(r["success"], np.ones(LAST) / LAST, "valid") for r in found]
    length = min(map(len, smooth))
    if length == 0:
        return
    steps = np.arange(LAST, LAST + length)
    [line] = axes.plot(steps, np.mean([s[:length] for s in smooth], axis=0), label=name)
    for each in smooth if len(smooth) > 1 else []:
        axes.plot(steps, each[:length], color=line.get_color(), alpha=0.3, linewidth=0.8)


if __name__ == "__main__":
    typer.run(main)
