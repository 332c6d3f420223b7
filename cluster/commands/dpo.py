"""Train a model on preference pairs: `python -m cluster.commands.dpo RECIPE [section.key=value …]`.

Exit codes: 0 done or stopped on request · 1 the run failed · 2 the recipe, or what it names, cannot run.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands import app, offline


def main(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's file, or a name.", autocompletion=app.complete_recipes),
    ],
    overrides: app.Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, start nothing.")] = False,
    as_json: app.AsJson = False,
) -> None:
    """Train a model to prefer the chosen completions of a file to the rejected ones (DPO, arXiv:2305.18290).

    `learner.sequence_losses` names another loss of pairs, such as ipo.

    The run directory has metrics.jsonl, summary.json and checkpoints as any run has: `kanabo evaluate RUN@latest`,
    `kanabo export RUN`, and `model.path` of a recipe with rollouts take them. With --json stdout has nothing but the
    summary, or the recipe of a dry run.

    Exit codes: 0 done or stopped on request · 1 the run failed · 2 the recipe, or what it names, cannot run.
    """
    offline.start("dpo", recipe, overrides or [], dry_run=dry_run, as_json=as_json)


if __name__ == "__main__":
    app.start(main)
