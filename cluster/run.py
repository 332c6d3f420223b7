"""The main job: `python -m cluster.run RECIPE [section.key=value …] [--dry-run]`.

Exit codes: 0 done or stopped on request · 1 the run failed · 2 the recipe, or what it names, cannot run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.models import prepare
from cluster import config, import_path
from cluster.commands import app, resume_report
from cluster.config import RunConfig
from cluster.driver import preflight, preflight_dataset
from cluster.driver.autoscaler import Autoscaler
from cluster.driver.dry_run import plan
from cluster.driver.health import NothingLearned
from cluster.errors import BufferUnavailable, ConfigError, InfrastructureError, KanaboError
from cluster.observability import alarm_report, live_table, metrics
from cluster.observability import summary as report
from cluster.placement.job_metadata import tell_job
from cluster.process import cleanup
from cluster.process.lock import acquire_run_lock
from cluster.storage import checkpoint
from cluster.storage.model_aliases import INITIAL, pinned
from cluster.types import SkippedTasks

log = logging.getLogger(__name__)

LOOPBACK_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: this Ray has one node
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}
"""What tells libraries that a run needs no other machine; what is set already holds."""


def main(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe's file, or a name that `kanabo recipes` lists.",
            autocompletion=app.complete_recipes,
        ),
    ],
    overrides: app.Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, start nothing.")] = False,
    as_json: app.AsJson = False,
) -> None:
    """Train as a recipe says.

    With --json stdout has nothing but the summary, or the resolved recipe of a dry run; all else goes to stderr.

    Exit codes: 0 done or stopped on request · 1 the run failed · 2 the recipe, or what it names, cannot run.
    """
    import_path.add_working_directory()
    live_table.console.stderr = as_json
    stay_on_loopback()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("actors.models").setLevel(logging.INFO)  # making a model takes a minute: say so
    try:
        settings = config.load(recipe, overrides or [])
        directory = preflight.run_directory(settings)
        settings = pinned(settings, directory)
        if finished := _nothing_left(settings, directory):
            _say(finished)
            if as_json:
                app.print_json(config.tree_of(settings) if dry_run else _summary_of(directory))
            raise typer.Exit(0)
        shown = settings.tracking.live_table and not dry_run
        with live_table.LiveTable(settings.run.name, settings.learner.steps, shown) as live:
            _check(settings, directory, live, dry_run=dry_run)
            code = 0 if dry_run else run(settings, recipe, directory, live)
        if dry_run:
            _tell_plan(settings, directory)
        if as_json:
            app.print_json(config.tree_of(settings) if dry_run else _summary_of(directory))
    except ConfigError as error:
        live_table.console.print(f"[bold red]error[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except InfrastructureError as error:  # before the pipeline had begun, so there is no summary
        live_table.console.print(f"[bold red]failed[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def stay_on_loopback() -> None:
    """Let the servers of a run that has this machine to itself listen where no other machine reaches them.

    Ray, vLLM and gloo else choose an address of the network; most of their servers ask for no password.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    for name, value in LOOPBACK_ONLY.items():  # Ray reads its own when it is imported
        os.environ.setdefault(name, value)


def _check(settings: RunConfig, directory: Path, live: live_table.LiveTable, *, dry_run: bool) -> None:
    """Look at all that can be looked at before the start, and say what it means. Raises ConfigError."""
    live.waiting("checking the recipe, the model, the tasks and the rewards")
    warnings = preflight.everything(settings, directory, online=not dry_run)
    if settings.judges:
        from cluster.driver import preflight_judges

        live.waiting("asking every judge one question")
        warnings += preflight_judges.judges(settings, preflight.tasks(settings)[0])
    for warning in warnings:
        live.warning(warning)
    for sentence in resume_report.report(settings, directory, preflight.resume_point(settings, directory)):
        _say(sentence)


def _tell_plan(settings: RunConfig, directory: Path) -> None:
    """What a run of this recipe would be. Raises ConfigError if the cluster that $RAY_ADDRESS names cannot hold it."""
    from cluster.driver import preflight_judges, preflight_rewards

    live_table.console.print(plan(settings, directory), highlight=False, soft_wrap=True)
    for untried in (*preflight_rewards.untried(settings), *preflight_judges.unasked(settings)):
        _say(untried)
    if "RAY_ADDRESS" in os.environ:
        _say(_room(settings))


def _nothing_left(settings: RunConfig, directory: Path) -> str:
    """Why nothing has to be started, in words; empty where something has. Raises ConfigError for another's run."""
    if not (directory / "metrics.jsonl").exists():
        return ""
    preflight.place(directory)
    preflight.used_directory(settings, directory)
    return resume_report.nothing_left(settings, directory, preflight.resume_point(settings, directory))


def _summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def _room(settings: RunConfig) -> str:
    """Whether the cluster that $RAY_ADDRESS names could hold it, in words. Raises ConfigError if not."""
    from cluster.placement import groups, ray_runtime

    try:
        with app.progress(f"asking Ray at {os.environ['RAY_ADDRESS']}"):
            ray_runtime.start_ray(settings)
            groups.check(settings)
    finally:
        _shut_down()
    return f"The cluster at {os.environ['RAY_ADDRESS']} has room for all of it."


def run(settings: RunConfig, recipe: str, directory: Path, live: live_table.LiveTable) -> int:
    """Run a checked recipe in `directory`; returns the exit code. Raises ConfigError before anything is trained."""
    from cluster import workers
    from cluster.buffer.server import Store
    from cluster.placement import groups, ray_runtime

    cleanup.settle()
    resume_from = preflight.resume_point(settings, directory)
    begun = time.monotonic()
    with ExitStack() as at_exit:
        at_exit.callback(_shut_down)
        live.waiting("joining the Ray cluster" if "RAY_ADDRESS" in os.environ else "starting Ray")
        ray_runtime.start_ray(settings)
        groups.check(settings)
        at_exit.enter_context(acquire_run_lock(directory))  # before anything is written there
        preflight.used_directory(settings, directory)
        if resume_from is not None:
            checkpoint.abandon_after(directory / "checkpoints", checkpoint.read(resume_from).step)
        making = time.monotonic()
        live.waiting("making or loading the model")
        models = {name: str(prepare(settings.of_policy(name).model, settings.seed)) for name in settings.policy_names}
        begun += time.monotonic() - making  # a model is made or downloaded once, so its time is not the run's
        live.state("reading the data set")
        left_out = _data(settings, directory, models)
        store = None
        live.waiting("starting Redis" if settings.buffer.url is None else "asking Redis")
        if settings.buffer.url is None:
            store = at_exit.enter_context(Store(directory / "redis", bind=ray_runtime.reachable_address()))
        url = store.url if store else str(settings.buffer.resolved())
        before = resume_report.stored(directory)
        (directory / "config.toml").write_text(config.dump(settings))
        for name in settings.policies:  # for `cluster.commands.replay`, which takes it for a run of its own
            (directory / "policies" / name).mkdir(parents=True, exist_ok=True)
            (directory / "policies" / name / "config.toml").write_text(config.dump(settings.of_policy(name)))
        (directory / INITIAL).write_text(models[workers.POLICY], "utf-8")
        run_id = preflight.run_id(settings, directory)
        context = workers.RunContext(
            settings, models.pop(workers.POLICY), url, run_id, str(directory), models, left_out
        )
        return asyncio.run(_drive(context, store, recipe, resume_from, begun, live, before))


def _data(settings: RunConfig, directory: Path, models: Mapping[str, str]) -> SkippedTasks:
    """Which rows are no tasks of this run, told and written down at its start. Raises ConfigError where none is left.

    A run that has begun keeps what it has left out, or else its places in the data set would be those of other rows.
    """
    from transformers import AutoTokenizer

    rows = preflight_dataset.read(settings)
    if rows is None:
        return SkippedTasks()
    if preflight.begun(directory):
        before = preflight_dataset.stored(directory)
        if before is not None:
            return preflight_dataset.left_out(before)
        preflight_dataset.save(directory, settings, rows, SkippedTasks())
        return SkippedTasks()
    tokenizers = {name: AutoTokenizer.from_pretrained(model) for name, model in models.items()}
    measured = bool(rows.measured)
    found, said = preflight_dataset.measure(settings, rows, tokenizers)
    for sentence in [] if measured else said:
        live_table.console.print(f"[yellow]warning[/] {_plain(sentence)}", highlight=False, soft_wrap=True)
    preflight_dataset.save(directory, settings, rows, found)
    return found


async def _drive(
    context,
    store,
    recipe: str,
    resume_from: Path | None,
    begun: float,
    live: live_table.LiveTable,
    before: RunConfig | None = None,
) -> int:
    from cluster import workers
    from cluster.buffer import Buffer, ReplicaCounts
    from cluster.commands import scale
    from cluster.driver.supervisor import Supervisor
    from cluster.observability.prometheus import PrometheusExporter
    from cluster.placement import groups, ray_runtime

    settings, directory = context.config, Path(context.run_dir)
    buffer = Buffer(context.url, context.run_id)  # not as patient as the pipeline's, which has not begun, or has ended
    buffer.configure(preflight.limits(settings))
    buffer.forsake(workers.POLICY)  # every worker of an earlier life is gone
    for sentence in scale.former(ReplicaCounts(context.url, context.run_id), settings, before):
        live.warning(sentence)
    groups.reserve(settings, context.run_id)
    sinks = [PrometheusExporter(settings.run.name), autoscaler := Autoscaler(settings)]
    recorder = metrics.Recorder(directory, settings.tracking, settings.run.name, config.tree_of(settings), sinks)
    recorder.forget_after(checkpoint.read(resume_from).step if resume_from else -1)
    supervisor = Supervisor(context, store, recorder, live, autoscaler)
    console = _console(context, buffer, supervisor)
    tell_job({"run": settings.run.name, "recipe": recipe, "console": console.address if console else "none"})
    live_table.console.print(f"metrics: {ray_runtime.scraped_at()}", highlight=False, soft_wrap=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.ask_to_stop)
    failure = None
    try:
        await supervisor.run(resume_from)
        if problem := supervisor.problem():
            raise NothingLearned(problem)
    except Exception as error:  # the report must be written whatever the run died of
        failure = error
        _write("error.txt", lambda: _write_trace(directory / "error.txt", error))
    await supervisor.close()
    if console:
        console.close()
    recorder.close()
    try:
        if store is not None and not store.alive():
            raise BufferUnavailable("the run's own Redis has ended")
        ledger = buffer.summary(workers.POLICY)
    except BufferUnavailable as error:
        failure, ledger = failure or error, {}  # what became of the claims is unknown
    summary = report.summarize(
        recipe,
        directory,
        time.monotonic() - begun,
        ledger,
        problem="" if failure is None else str(failure),
        warnings=supervisor.warnings(),
        not_measured=supervisor.not_measured(),
    )
    _write("summary.json", lambda: report.write_summary(directory, summary))
    _write("curves.png", lambda: report.draw_curves(directory))
    live.close()
    live_table.show_facts(f"kanabo · {directory}", {k: v for k, v in summary.items() if k not in report.IN_WORDS})
    for sentence in report.in_sentences(summary):
        live_table.console.print(f"[yellow]warning[/] {_plain(sentence)}", highlight=False, soft_wrap=True)
    if failure is not None:
        kind = "" if isinstance(failure, KanaboError) else f"{type(failure).__name__}: "
        live_table.console.print(f"[bold red]failed[/] {kind}{_plain(str(failure))}", highlight=False, soft_wrap=True)
        if isinstance(failure, alarm_report.Alarmed):
            live_table.console.print(_plain(alarm_report.close(directory, failure)), highlight=False, soft_wrap=True)
            return 1
        live_table.console.print(f"The whole trace is in {directory / 'error.txt'}.", highlight=False, soft_wrap=True)
        return 1
    return 0


def _write(name: str, write: Callable[[], None]) -> None:
    """Write one of the run's last files; a disk that does not take it must not hide how the run ended."""
    try:
        write()
    except OSError as error:
        live_table.console.print(f"[yellow]warning[/] {name} was not written: {_plain(str(error))}", highlight=False)


def _write_trace(path: Path, error: BaseException) -> None:
    with path.open("w") as file:
        traceback.print_exception(error, file=file)


def _console(context, buffer, supervisor):
    """The run's web page, if the recipe wants one; its address is printed."""
    if not context.config.console.enabled:
        return None
    from cluster.buffer import ReplicaCounts
    from cluster.observability.console.server import Console
    from cluster.observability.console.source import Alive, Source

    alive = Alive(buffer, supervisor.standing, Path(context.model_dir), ReplicaCounts(context.url, context.run_id))
    console = Console(Source(Path(context.run_dir), alive), context.config.console)
    live_table.console.print(f"console: {console.address}", highlight=False, soft_wrap=True)
    return console


def _shut_down() -> None:
    import ray

    ray.shutdown()


def _say(sentence: str) -> None:
    live_table.console.print(_plain(sentence), highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    typer.run(main)
