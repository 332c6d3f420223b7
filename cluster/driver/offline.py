"""A run without engines: rows of a file, a learner of one or several ranks on this machine, a run directory.

The driver checks, starts the ranks as processes of its own and waits. Rank 0 writes metrics; all ranks write
checkpoints. A step is determined by the seed and its number, so a run that was killed goes on from its last checkpoint
as if nothing had been.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from actors.models import prepare
from cluster import config
from cluster.config import OfflineConfig
from cluster.driver import preflight
from cluster.errors import ConfigError, KanaboError, one_line
from cluster.observability import live_table, metrics
from cluster.observability.summary import write_summary
from cluster.observability.trackers import trackers
from cluster.process import cleanup
from cluster.process.disk import alone, until_written
from cluster.process.lock import acquire_run_lock
from cluster.storage import checkpoint, leftovers

Kind = Literal["sft", "dpo"]
SHOWN = ("loss/", "eval/", "pairs/accuracy", "learner/lr", "learner/grad_norm")
"""What a line of progress tells of a step's metrics."""
TOLD = 3
"""Rows that are left out and named; further ones are counted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do."""

    settings: OfflineConfig
    kind: Kind
    directory: Path
    model_dir: str
    resume_from: Path | None
    rows: int
    left_out: Sequence[str]
    """Why some of the first rows are not trained on."""


def plan(settings: OfflineConfig, kind: Kind) -> Plan:
    """Look at all that can be looked at before the start; makes or downloads the model. Raises ConfigError."""
    directory = preflight.run_directory(settings)
    preflight.place(directory)
    if (directory / "config.toml").exists() and not (directory / leftovers.OFFLINE).exists():
        raise ConfigError(f"{directory} is a run with rollouts. Give this one another run.name.")
    for tracker in trackers(settings.tracking):
        tracker.check()
    found = checkpoint.usable(directory / "checkpoints")
    model_dir = str(prepare(settings.model, settings.seed))
    settings = within_positions(settings, model_dir)
    rows = demonstrations(settings, kind, model_dir)
    if not settings.learner.model_fields_set & {"steps"}:
        steps = max(1, round(settings.data.epochs * len(rows) / settings.data.batch_size))
        learner = settings.learner.model_copy(update={"steps": steps})
        settings = settings.model_copy(update={"learner": learner})
    plan = Plan(settings, kind, directory, model_dir, found[-1] if found else None, len(rows), rows.check())
    check_same(plan)
    return plan


def within_positions(settings: OfflineConfig, model_dir: str) -> OfflineConfig:
    """The recipe with at most as many tokens a row as the model has positions."""
    from transformers import AutoConfig

    from learner.engine.forward import max_positions

    positions = max_positions(AutoConfig.from_pretrained(model_dir))
    if positions is None or positions >= settings.data.max_tokens:
        return settings
    return settings.model_copy(update={"data": settings.data.model_copy(update={"max_tokens": positions})})


def demonstrations(settings: OfflineConfig, kind: Kind, model_dir: str) -> Any:
    """The rows of a recipe, tokenised as the model reads them. Raises ConfigError."""
    from transformers import AutoTokenizer

    from actors.chat import Chat
    from actors.demonstrations import Demonstrations

    chat = Chat(AutoTokenizer.from_pretrained(model_dir))
    return Demonstrations(settings.data, chat, settings.seed, pairs=kind == "dpo", where="data")


def check_same(plan: Plan) -> None:
    """Raises ConfigError where the run directory is of a run on other rows, or of the other kind."""
    if plan.resume_from is None:
        return
    before = tomllib.loads((plan.directory / leftovers.OFFLINE).read_text("utf-8"))
    now = recipe(plan)
    for key, value in now["identity"].items():
        if before.get("identity", {}).get(key) != value:
            raise ConfigError(
                f"{plan.directory} holds a run with {key} = {before.get('identity', {}).get(key)!r}, and this recipe "
                f"has {value!r}. Give this run another run.name, or remove that directory."
            )


def recipe(plan: Plan) -> dict[str, Any]:
    """What the run directory keeps of a recipe."""
    settings = plan.settings
    identity = {
        "kind": plan.kind, "seed": settings.seed, "model": settings.model.path, "rows": plan.rows,
        "batch_size": settings.data.batch_size, "shuffle": settings.data.shuffle,
    }  # fmt: skip
    return {"identity": identity, **settings.model_dump(mode="json", exclude_none=True)}


Output = Literal["stdout", "stderr"]


def run(plan: Plan, *, output: Output = "stdout") -> int:
    """Train in the plan's directory; returns the exit code, 0 also after a stop on request.

    `output` is where progress is printed.
    """
    settings, directory = plan.settings, plan.directory
    cleanup.settle()
    with acquire_run_lock(directory):
        (directory / "config.toml").write_text(config.dump(settings.as_run()))
        (directory / leftovers.OFFLINE).write_text(tomli_w.dumps(recipe(plan)))
        master = ("127.0.0.1", free_port())
        if settings.learner.ranks == 1:
            return rank(plan, 0, master, output)
        context = multiprocessing.get_context("spawn")
        ranks = [
            context.Process(target=_rank_process, args=(plan, number, master, output), name=f"rank {number}")
            for number in range(settings.learner.ranks)
        ]
        for process in ranks:
            process.start()
        return _wait(ranks)


def _wait(ranks: Sequence[Any]) -> int:
    """Wait for all ranks; one that fails ends the others. Returns its exit code, 1 for one that was killed."""

    def tell(number: int, frame: Any) -> None:
        for process in ranks:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        left = list(ranks)
        while left:
            multiprocessing.connection.wait([process.sentinel for process in left])
            for process in [p for p in left if p.exitcode is not None]:
                left.remove(process)
                if process.exitcode:
                    for other in left:
                        other.kill()  # they wait in a collective for the one that is gone
                    return process.exitcode if process.exitcode in (1, 2) else 1
        return 0
    finally:
        for process in ranks:
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _rank_process(plan: Plan, number: int, master: tuple[str, int], output: Output) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[number] if number < len(devices) else str(number)
    cleanup.settle()
    sys.exit(rank(plan, number, master, output))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank(plan: Plan, number: int, master: tuple[str, int], output: Output) -> int:
    """One rank, from nothing to the last checkpoint; returns the exit code."""
    from transformers.utils.logging import disable_progress_bar

    from learner.engine.deepspeed_engine import DeepSpeedEngine, join

    settings, directory = plan.settings, plan.directory
    section = settings.learner
    stopping = False

    def stop(_: int, frame: Any) -> None:
        nonlocal stopping
        stopping = True

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, stop)
    disable_progress_bar()
    progress = Progress(section.steps, output, shown=number == 0)
    try:
        progress.say("loading the model")
        join(number, section.ranks, master, timeout_s=section.collective_timeout_s)
        engine = DeepSpeedEngine(plan.model_dir, section, settings.seed)
        if number == 0:
            engine.try_export()
        if plan.resume_from is not None:
            engine.load(plan.resume_from / "learner")
        return _train(plan, engine, progress, lambda: stopping)
    except Exception as error:  # told in one line; the trace is in a file
        with (directory / "error.txt").open("w") as file:
            traceback.print_exception(error, file=file)
        kind = "" if isinstance(error, KanaboError) else f"{type(error).__name__}: "
        print(f"failed {kind}{one_line(error)}\nThe whole trace is in {directory / 'error.txt'}.", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


class Progress:
    """Prints a line for each step of a short run, and for a long one each tenth step or what was silent for 8 s."""

    SHORT, SILENT_S = 100, 8.0

    def __init__(self, steps: int, output: Output, *, shown: bool) -> None:
        self._steps, self._shown, self.output = steps, shown, output
        self._begun = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def say(self, text: str) -> None:
        """Print one line, on rank 0."""
        if self._shown:
            self._last = time.monotonic()
            print(text, file=sys.stderr if self.output == "stderr" else sys.stdout, flush=True)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell a step's losses, and how long the rest will take."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first, since = self._first
        left = (now - since) / (step - first) * (self._steps - step) if step > first else None
        due = self._steps <= self.SHORT or step % 10 == 0 or step in (1, self._steps)
        if due or now - self._last >= self.SILENT_S:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.startswith(SHOWN))
            times = f"elapsed {live_table.duration(now - self._begun)}, left {live_table.duration(left)}"
            self.say(f"step {step}/{self._steps}  {figures}  {times}")


def _train(plan: Plan, engine: Any, progress: Progress, stop: Any) -> int:
    from actors.demonstrations import PAIR
    from learner.losses.demonstrations import Imitation
    from learner.losses.sequence_losses import build_sequence_losses, terms_of
    from learner.offline import OfflineRun, Preference
    from learner.reference import reference_for

    settings, section, directory = plan.settings, plan.settings.learner, plan.directory
    pairs = PAIR if plan.kind == "dpo" else ()
    if pairs and any(term.asks for _, _, term in terms_of(section)):
        raise ConfigError(
            "learner.sequence_losses: a loss that asks about rollouts needs a run; `kanabo dpo` has none."
        )
    rows = demonstrations(settings, plan.kind, plan.model_dir)
    recorder = None
    if engine.rank == 0:
        tree = settings.model_dump(mode="json", exclude_none=True)
        recorder = metrics.Recorder(directory, settings.tracking, settings.run.name, tree)
        recorder.forget_after(engine.step if plan.resume_from else -1)
    told = 0

    def record(step: int, values: dict[str, float], left_out: Sequence[str]) -> None:
        nonlocal told
        for why in left_out:
            told += 1
            if told <= TOLD:
                progress.say(f"warning: left out: {why}")
        if recorder is not None:
            recorder.record(step, values)
        progress.step(step, values)

    every = settings.checkpoint.every_steps

    def written(write: Callable[[], Any], what: str, agree: Callable[[bool], bool] = alone) -> Any:
        return until_written(write, what, progress.say, stop, agree)

    def save(step: int) -> None:
        folder = directory / "checkpoints"
        checkpoint.save_alone(folder, engine, config.POLICY, step, settings.checkpoint.keep_last, written=written)

    def after_step(step: int) -> None:
        if every and step % every == 0 and step < section.steps:
            save(step)

    begun = engine.step
    held_out, left_out = rows.evaluation()
    progress.say("training")
    run = OfflineRun(
        section=section,
        engine=engine,
        objective=Preference(build_sequence_losses(section)) if pairs else Imitation(),
        reference=reference_for(section, plan.model_dir, engine) if pairs else None,
        rows=rows.batch,
        held_out=(held_out, settings.data.batch_size),
        evaluate_every_steps=settings.evaluate_every_steps,
        pairs=pairs,
        record=record,
        after_step=after_step,
        stop=stop,
    )
    step = run.train()
    if step > begun:
        save(step)
    if recorder is not None:
        recorder.close()
        write_summary(directory, summary := _summary(plan, step, len(left_out)))
        live_table.console.stderr = progress.output == "stderr"
        live_table.show_facts(f"kanabo {plan.kind} · {directory}", summary)
    return 0


def _summary(plan: Plan, step: int, evaluation_left_out: int) -> dict[str, Any]:
    """First and last figures of what was measured; what was not is absent."""
    rows = metrics.read(plan.directory)
    trained = [row for row in rows if "learner/tokens" in row]
    found: dict[str, Any] = {"steps": step, "rows": plan.rows}
    found["rows_left_out"] = int(sum(row.get("learner/num_left_out_rows") or 0 for row in trained))
    if evaluation_left_out:
        found["evaluation_rows_left_out"] = evaluation_left_out
    found["tokens"] = int(sum(row["learner/tokens"] for row in trained))
    names = dict.fromkeys(n for row in rows for n in row if n.startswith(("loss/", "eval/", "pairs/")))
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            key = name.replace("/", "_")
            found |= {f"{key}_first": values[0], f"{key}_last": values[-1]}
    return found
