"""Run one recorded step again: `python -m cluster.commands.replay RUN --step N`.

Exit codes: 0 the same to the last bit · 1 it came out differently · 2 no such run or step.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.models import prepare
from cluster import config
from cluster.commands import app
from cluster.errors import ConfigError
from cluster.observability import live_table
from cluster.process import cleanup


def main(
    run: app.RunName,
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="N", help="Counted from 1, as in metrics.jsonl.", show_default="the newest"),
    ] = None,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Train on one recorded step again and compare losses, gradient norm and weights bit by bit.

    Exit codes: 0 the same to the last bit · 1 it came out differently · 2 no such run or step.
    """
    with app.exit_codes():
        found, step = app.find_step(run, directory, step)
        step = _newest(found) if step is None else step
        with app.progress(f"step {step}"):
            before, after = replay(found, step)
    different = [k for k, v in before["metrics"].items() if after["metrics"].get(k) != v]
    different += ["weights"] if before["weights_sha256"] != after["weights_sha256"] else []
    if as_json:
        app.print_json({"step": step, "different": different, "before": before, "after": after})
    else:
        _show(step, before, after, different)
    raise typer.Exit(1 if different else 0)


def _newest(run: Path) -> int:
    """The last step that the run recorded. Raises ConfigError."""
    names = [path.name.removeprefix("step_") for path in (run / "replay").glob("step_*")]
    steps = [int(name) for name in names if name.isdecimal()]
    if not steps:
        raise ConfigError(f"run '{run.name}' recorded no step: checkpoint.record_every_steps says how often it does.")
    return max(steps)


def replay(run: Path, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the step came to then and now. Raises ConfigError if the run kept no such step."""
    from learner.step_replay import load

    folder = run / "replay" / f"step_{step}"
    before = load(folder)[1]
    settings = config.stored(run)
    model_dir = str(prepare(settings.model, settings.seed))
    world = settings.learner.ranks
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Processes of their own also for one rank: a process group is for life.
    context = multiprocessing.get_context("spawn")
    with context.Pool(world) as pool:
        calls = [(folder, settings, model_dir, rank, world, ("127.0.0.1", port)) for rank in range(world)]
        return before, pool.starmap(_rank, calls, chunksize=1)[0]


def _rank(*args: Any) -> dict[str, Any]:
    from learner.step_replay import rerun

    os.dup2(2, 1)  # what libraries print is not this command's answer
    cleanup.settle()
    return rerun(*args)


def _show(step: int, before: dict[str, Any], after: dict[str, Any], different: list[str]) -> None:
    for name, value in before["metrics"].items():
        then, now = float.fromhex(value), float.fromhex(after["metrics"].get(name, "nan"))
        live_table.console.print(f"{name:32} {then:.9g}  {now:.9g}", highlight=False)
    for line in after["suspects"]:
        live_table.console.print(f"[yellow]suspect[/] {line}", highlight=False, soft_wrap=True)
    same = "the same to the last bit" if not different else f"different: {', '.join(different)}"
    live_table.console.print(f"step {step}: {same}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app.start(main)
