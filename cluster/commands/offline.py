"""What `kanabo sft` and `kanabo dpo` share: a recipe with `[data]`, checked, told and run."""

from __future__ import annotations

import json
import logging
import sys

import typer

from cluster import config, import_path
from cluster.commands import app
from cluster.config import OfflineConfig
from cluster.driver import offline
from cluster.errors import ConfigError
from cluster.storage import checkpoint


def start(kind: offline.Kind, recipe: str, overrides: list[str], *, dry_run: bool, as_json: bool) -> None:
    """Run what a recipe says, or with `dry_run` say what it would be. Ends with the command's exit code."""
    import_path.add_working_directory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("actors.models").setLevel(logging.INFO)  # making a model takes a minute: say so
    with app.exit_codes():
        plan = offline.plan(load(kind, recipe, overrides), kind)
        for sentence in told(plan):
            print(sentence, file=sys.stderr if as_json else sys.stdout, flush=True)
    done = plan.resume_from is not None and _step(plan) >= plan.settings.learner.steps
    code = 0 if dry_run or done else offline.run(plan, output="stderr" if as_json else "stdout")
    if as_json and code == 0:
        summary = plan.directory / "summary.json"
        app.print_json(offline.recipe(plan) if dry_run else json.loads(summary.read_text("utf-8")))
    raise typer.Exit(code)


def load(kind: offline.Kind, recipe: str, overrides: list[str]) -> OfflineConfig:
    """Read a recipe of this kind and apply overrides. Raises ConfigError."""
    tree = config.overridden(config.tree(recipe), overrides)
    if "data" not in tree and ("tasks" in tree or "rewards" in tree):
        raise ConfigError(
            f"{recipe}: this is a recipe with rollouts, which `kanabo run` starts. `kanabo {kind}` wants [data]."
        )
    found = config.parse_as(OfflineConfig, tree, where=recipe)
    try:
        return found.of(kind)
    except ValueError as error:
        raise ConfigError(f"{recipe}: {error}") from error


def told(plan: offline.Plan) -> list[str]:
    """What a run of this plan does, in sentences."""
    section, data = plan.settings.learner, plan.settings.data
    what = "conversations" if plan.kind == "sft" else "pairs"
    said = [
        f"{plan.rows:,} {what} of {data.path}, {data.batch_size} a step, {section.steps} steps "
        f"({section.steps * data.batch_size / plan.rows:.3g} passes); the run is {plan.directory}."
    ]
    for why in plan.left_out[: offline.TOLD]:
        said.append(f"warning: left out: {why}")
    if more := len(plan.left_out) - offline.TOLD:
        said += [f"warning: {more} more of the first rows are left out."] if more > 0 else []
    if plan.resume_from is not None:
        step = _step(plan)
        if step >= section.steps:
            said.append(f"The run has reached step {step} of {section.steps}: there is nothing left to do.")
        else:
            said.append(f"The run goes on from step {step}.")
    return said


def _step(plan: offline.Plan) -> int:
    return checkpoint.read(plan.resume_from).step if plan.resume_from is not None else 0
