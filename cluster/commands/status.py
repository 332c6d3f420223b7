"""All runs, live or not: `python -m cluster.commands.status [--watch]`.

What is shown is read from run directories. A run is live if a process here holds the lock on its Redis directory, or if
its learner is an actor of the cluster that $RAY_ADDRESS names.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cluster.commands import app
from cluster.errors import ConfigError
from cluster.observability import metrics
from cluster.placement.ray_address import check_address

REFRESH_S = 2.0
FAILURES = "failures/"

State = Literal["live", "finished", "stopped", "failed", "silent"]


@dataclass(frozen=True)
class Status:
    """One row of the table; None is unknown."""

    run: str
    state: State
    step: int
    steps: int | None
    reward: float | None
    accuracy: float | None
    tokens_per_s: float | None
    staleness: float | None
    age_s: float | None
    """Since the last row of metrics was written."""
    directory: Path
    failures: dict[str, int]
    """Kind → how many so far: `infrastructure`, `data`, `unreadable`, `condemned`, `leases_lost`; without zeros."""


def main(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Only these, by name or directory.", show_default="all")
    ] = None,
    directory: app.RunsDir = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    as_json: app.AsJson = False,
) -> None:
    """Show all runs as a table: state, step, reward, accuracy, speed, staleness, failures.

    live: its process is there · finished, stopped, failed: it ended so · silent: neither; it was killed, or runs where
    this command cannot see it (set RAY_ADDRESS).

    Exit codes: 0 shown · 2 no such run, wrong usage, or $RAY_ADDRESS names a cluster that does not answer.
    """
    base = app.runs_directory(directory)
    with app.exit_codes():
        only = [app.find_run(run, directory) for run in runs or ()]
        if watch and not as_json:
            _watch(base, only)
            return
        in_cluster = live_in_cluster()
    with app.progress("reading runs", len(only or app.run_directories(base))) as advance:
        found = statuses(base, in_cluster, advance, only)
    if as_json:
        app.print_json([asdict(status) for status in found])
    else:
        from cluster.observability.live_table import console

        console.print(_table(found, base))


def statuses(
    base: Path,
    in_cluster: Collection[str] = (),
    advance: Callable[[float], None] = lambda _: None,
    only: Sequence[Path] = (),
) -> list[Status]:
    """Return the status of every run below `base`, or of the directories in `only`.

    `in_cluster` names those whose learner is an actor of the cluster.
    """
    locks, found = held_locks(), []
    for path in only or app.run_directories(base):
        found.append(status(path, locks, in_cluster))
        advance(1)
    return found


def status(run: Path, locks: Collection[int], in_cluster: Collection[str] = ()) -> Status:
    """Return the status of one run directory; `locks` are the inodes of locked files."""
    rows = metrics.read(run)
    values = {key: value for row in rows for key, value in row.items() if value is not None}
    step = max((row["step"] for row in rows if "learner/step_s" in row), default=0)
    try:
        recipe = app.recipe_of(run)
    except ConfigError:
        recipe = {}  # the other runs are shown all the same
    steps = recipe.get("learner", {}).get("steps")
    written = _written(run / "metrics.jsonl") if rows else None
    return Status(
        run=run.name,
        state=_state(run, locks, in_cluster, step, steps),
        step=step,
        steps=steps,
        reward=values.get("reward/mean"),
        accuracy=values.get("eval/accuracy"),
        tokens_per_s=values.get("rollout/tokens_per_s"),
        staleness=values.get("policy/staleness_steps"),
        age_s=None if written is None else max(0.0, time.time() - written),
        directory=run,
        failures={
            key.removeprefix(f"{FAILURES}num_"): int(n) for key, n in values.items() if key.startswith(FAILURES) and n
        },
    )


def _state(run: Path, locks: Collection[int], in_cluster: Collection[str], step: int, steps: int | None) -> State:
    lock, id = run / "redis" / "owner.lock", run / "id"
    named = id.read_text("utf-8", "replace") if id.is_file() else ""
    if named in in_cluster or (lock.exists() and lock.stat().st_ino in locks):
        return "live"
    # `config.toml` is written whenever a run starts: an older summary is that of an earlier life.
    started = _written(run / "config.toml") or 0.0
    if (_written(run / "summary.json") or 0.0) < started:
        return "silent"
    if (_written(run / "error.txt") or 0.0) >= started:
        return "failed"
    return "finished" if steps is not None and step >= steps else "stopped"


def held_locks(table: Path = Path("/proc/locks")) -> set[int]:
    """Inodes of files that processes here hold locked. Asking by locking would refuse a run that starts meanwhile.

    Without the device: on overlay file systems the kernel's differs from what `stat` says.
    """
    if not table.exists():
        return set()
    lines = (line.split() for line in table.read_text().splitlines())
    return {int(words[5].rsplit(":", 1)[1]) for words in lines if len(words) >= 6 and words[1] == "FLOCK"}


def live_in_cluster() -> set[str]:
    """Names of the runs whose learner is an actor of $RAY_ADDRESS; none without that. Raises ConfigError."""
    if "RAY_ADDRESS" not in os.environ:
        return set()

    import ray
    from ray.util import list_named_actors

    with app.progress(f"asking Ray at {os.environ['RAY_ADDRESS']}"):
        check_address(os.environ["RAY_ADDRESS"])
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            return runs_of([str(actor["name"]) for actor in list_named_actors(all_namespaces=True)])  # type: ignore[index]
        finally:
            ray.shutdown()


def runs_of(actors: Iterable[str]) -> set[str]:
    """Runs of actors called `kanabo:RUN:POLICY:learner:RANK`, as `cluster.workers` names them."""
    parts = [name.split(":") for name in actors]
    return {words[1] for words in parts if len(words) == 5 and words[0] == "kanabo" and words[3] == "learner"}


def _watch(base: Path, only: Sequence[Path]) -> None:
    from rich.live import Live

    from cluster.observability.live_table import console

    in_cluster = live_in_cluster()  # asked once: it takes a second, and is a job in Ray's list
    with Live(_table(statuses(base, in_cluster, only=only), base), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(REFRESH_S)
                live.update(_table(statuses(base, in_cluster, only=only), base), refresh=True)
        except KeyboardInterrupt:
            return


def _table(found: list[Status], base: Path) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from cluster.observability.live_table import number

    empty = "" if found else "There is no run here; another place is given by --dir."
    # Nine columns in the 80 characters of a pipe: without lines between them, and folded where they do not fit.
    table = Table(
        title=f"kanabo · {base}", caption=empty, title_justify="left", caption_justify="left",
        box=SIMPLE_HEAD, pad_edge=False, padding=0,
    )  # fmt: skip
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("state", no_wrap=True)
    for column in ("step", "reward", "accuracy", "tokens/s", "stale"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("row ago", justify="right", overflow="fold", min_width=6)
    table.add_column("failures", overflow="fold", min_width=8)
    for row in found:
        table.add_row(
            row.run,
            row.state,
            f"{row.step}/{number(row.steps, 'd')}",
            number(row.reward, ".3f"),
            number(row.accuracy, ".3f"),
            number(row.tokens_per_s, ",.0f"),
            number(row.staleness, ".2f"),
            "–" if row.age_s is None else _since(row.age_s),
            ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in row.failures.items()) or "–",
        )
    return table


def _since(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    app.start(main)
