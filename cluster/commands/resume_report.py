"""What a start in a used run directory means: from which step it goes on, what differs, what is left to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster import config
from cluster.commands import status
from cluster.config import RunConfig
from cluster.errors import ConfigError
from cluster.storage import checkpoint

UNTOLD = ("resume",)
"""Keys that say how to start, and are no property of the run."""
SHOWN = 12
"""Changed keys that are listed; more are counted."""


def stored(directory: Path) -> RunConfig | None:
    """The recipe that the run was started with last; None where there is none that can be read."""
    path = directory / "config.toml"
    try:
        return config.stored(directory) if path.exists() else None
    except ConfigError:
        return None


def changes(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ: dotted key → old and new value, None where a key is not set."""
    old, new = dict(leaves(config.tree_of(before))), dict(leaves(config.tree_of(now)))
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return {key: (old.get(key), new.get(key)) for key in differing if key not in UNTOLD}


def leaves(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every value of a recipe's tree with its dotted key."""
    if isinstance(node, dict) and node:
        return [pair for key, inner in node.items() for pair in leaves(inner, f"{path}.{key}" if path else key)]
    if isinstance(node, list) and any(isinstance(inner, dict) for inner in node):
        return [pair for i, inner in enumerate(node) for pair in leaves(inner, f"{path}[{i}]")]
    return [(path, node)]


def report(settings: RunConfig, directory: Path, resume_from: Path | None) -> list[str]:
    """Sentences about a start in a directory that holds a run: its step and the changed keys; none for a new run."""
    before = stored(directory)
    if before is None or not (directory / "metrics.jsonl").exists():
        return []
    if resume_from is None:
        said = ["The run in this directory has no checkpoint: it starts from the first step again."]
    else:
        step = checkpoint.read(resume_from).step
        left = max(0, settings.learner.steps - step)
        said = [f"Resumes from step {step} of {settings.learner.steps} ({resume_from}); {left} steps are left."]
    said.append(_changed(before, settings) or "The recipe is that of its last start.")
    return said


def _changed(before: RunConfig, now: RunConfig) -> str:
    """The changed keys in a sentence; empty where there are none."""
    found = [f"{key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in changes(before, now).items()]
    rest = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return f"Changed since its last start: {'; '.join([*found[:SHOWN], *rest])}." if found else ""


def nothing_left(settings: RunConfig, directory: Path, resume_from: Path | None) -> str:
    """Why there is nothing to do in this directory, in words; empty where there is something.

    A run is done once its last step is saved and its summary is written, the last evaluation included.
    """
    if resume_from is None:
        return ""
    step, steps = checkpoint.read(resume_from).step, settings.learner.steps
    if step < steps or not (directory / "metrics.jsonl").exists():
        return ""
    if status.status(directory, status.held_locks()).state != "finished":
        return ""
    before = stored(directory)
    changed = _changed(before, settings) if before else ""
    return (
        f"The run in '{directory}' is finished: step {step} of learner.steps = {steps} is trained and saved, and "
        "summary.json is written. There is nothing left to do. Raise learner.steps to train on, choose another "
        "run.name for a new run, or take the model with `kanabo export`."
        + (f" {changed} No step is left that this could act on." if changed else "")
    )


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
