"""What a run leaves behind: `summary.json` (a contract for scripts) and `curves.png`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.observability import metrics

SUMMARY_KEYS = (
    "recipe", "steps", "wall_s", "eval_accuracy_initial", "eval_accuracy_final", "groups_claimed",
    "groups_trained", "groups_dropped", "groups_lost", "groups_trained_twice", "scores_failed",
    "max_staleness_observed", "logprob_diff_floor_nats", "logprob_diff_mean_nats", "logprob_diff_max_nats",
    "samples_per_s", "tokens_per_s", "learner_waiting_frac", "versions_published", "problem", "warnings",
    "not_measured",
)  # fmt: skip

IN_WORDS = ("problem", "warnings", "not_measured")
"""Figures that are printed as sentences, below the others."""


def summarize(
    recipe: str,
    directory: Path,
    wall_s: float,
    ledger: Mapping[str, Any],
    *,
    problem: str = "",
    warnings: Sequence[str] = (),
    not_measured: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The summary of a run from its ledger and its recorded metrics.

    `problem` is why the run failed, `warnings` what else went wrong, in words. `not_measured` gives reasons by figure;
    every figure that is None has one in the summary: neither an older value nor a default takes its place.
    """
    rows = metrics.read(directory)
    steps = [r for r in rows if "learner/step_s" in r]
    reached = max((r["step"] for r in steps), default=0)
    accuracy = {r["step"]: r["eval/accuracy"] for r in rows if r.get("eval/accuracy") is not None}
    logprob_diff = [r for r in rows if "policy/logprob_diff_mean_nats" in r]
    floor = [r["policy/logprob_diff_floor_nats"] for r in rows if r.get("policy/logprob_diff_floor_nats") is not None]
    busy_s = sum(r["learner/step_s"] for r in steps)
    values = {
        "recipe": recipe,
        "steps": reached,
        "wall_s": wall_s,
        "eval_accuracy_initial": accuracy.get(0),
        "eval_accuracy_final": accuracy.get(reached),
        **ledger,
        "scores_failed": int(sum(r.get("reward/failed_scores") or 0 for r in steps)) if steps else None,
        "logprob_diff_floor_nats": floor[0] if floor else None,
        "logprob_diff_mean_nats": _mean([r["policy/logprob_diff_mean_nats"] for r in logprob_diff]),
        "logprob_diff_max_nats": max((r["policy/logprob_diff_max_nats"] for r in logprob_diff), default=None),
        "samples_per_s": sum(r["learner/rollouts"] for r in steps) / busy_s if busy_s else None,
        "tokens_per_s": sum(r["learner/tokens"] for r in steps) / busy_s if busy_s else None,
        "learner_waiting_frac": sum(r["learner/wait_s"] for r in steps) / busy_s if busy_s else None,
        "versions_published": sum(r.get("weights/published", 0) for r in rows),
        "problem": problem,
        "warnings": [*warnings, *_in_vain(steps)],
    }
    if not values.get("groups_trained"):
        values["max_staleness_observed"] = None
    absent = [key for key in SUMMARY_KEYS if key != "not_measured" and values.get(key) is None]
    reasons = {key: (not_measured or {}).get(key) or _reason(key, reached, bool(steps)) for key in absent}
    return {key: values.get(key) for key in SUMMARY_KEYS} | {"not_measured": reasons}


def _in_vain(steps: Sequence[metrics.Row]) -> list[str]:
    """Steps that trained on nothing, or whose update was skipped, in sentences."""
    empty = sum(not row.get("learner/tokens") for row in steps)
    counts = [row.get("learner/num_skipped") or 0 for row in steps]
    # The count begins anew where the learner does.
    skipped = int(sum(max(0, now - before) for before, now in zip([0, *counts], counts, strict=False)))
    return [
        f"{count} of {len(steps)} steps {what}."
        for count, what in ((empty, "trained on nothing"), (skipped, "were skipped: their gradient was not finite"))
        if count
    ]


def _reason(key: str, reached: int, stepped: bool) -> str:
    if key.startswith("eval_accuracy"):
        at = 0 if key.endswith("initial") else reached
        return f"no evaluation was made at step {at}"
    if key.startswith("logprob_diff"):
        return "no published version was probed"
    if key == "max_staleness_observed" and stepped:
        return "no group was trained"
    return "what became of the claims is unknown: Redis did not answer" if stepped else "no step was taken"


def in_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What a summary says in words: figures that are missing, and warnings."""
    missing = [f"{figure} is missing: {why}." for figure, why in summary["not_measured"].items()]
    return [*missing, *summary["warnings"]]


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
    (directory / "summary.json").write_text(json.dumps(clean, indent=2) + "\n")


CURVES = (
    ("reward and evaluation accuracy", ("reward/mean", "eval/accuracy")),
    ("staleness (steps)", ("policy/staleness_steps",)),
    ("entropy (nats)", ("loss/entropy_nats",)),
    ("gradient norm", ("learner/grad_norm",)),
    ("logprob_diff (nats)", ("policy/logprob_diff_mean_nats", "policy/logprob_diff_max_nats")),
    ("seconds of a step", ("learner/step_s", "learner/wait_s")),
)


def draw_curves(directory: Path) -> None:
    """`curves.png` from `metrics.jsonl`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = metrics.read(directory)
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for axis, (title, names) in zip(axes.flat, CURVES, strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axis.set(title=title, xlabel="step")
        if axis.has_data():
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylim(0, 1)
    axes[1, 1].set_yscale("symlog", linthresh=1e-7)
    figure.savefig(directory / "curves.png", dpi=110)
    plt.close(figure)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
