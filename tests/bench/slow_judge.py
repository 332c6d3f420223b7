"""The pipeline with a judge whose 99th percentile is ten times the rollout's time: late, as admit, and blocking.

Late, it must cost nothing: `slow_judge` is the pipeline with it against the pipeline without, side by side. Beside
that, once each, the same judge as a blocking reward, which every group waits for, and a blocking run, which samples,
judges and trains in turn (`max_staleness = 0`). Median latency is the rollout's own time, which the first run measures.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.bench import iterations
from tests.bench.figures import Figure

PAIRS = int(os.environ.get("KANABO_BENCH_PAIRS", "3"))
STEPS, WAITING_STEPS = 16, 8
JUDGE = """
[[rewards]]
use = "judge"
name = "slow"
blocking = {blocking}
weight = 0.1
missing = 0.0
timeout_s = 600.0
options = {{ judge = "words" }}

[judges.words]
kind = "keyword"
max_in_flight = 4096 # how long it takes is the question, not how many it takes
deadline_s = 600.0
options = {{ keywords = ["1", "2", "3"], latency_s = {median:.3f}, latency_p99_s = {p99:.3f} }}

[reward_workers]
deadline_s = 600.0
"""


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        without = [iterations.run(directory, "without-0", "short", steps=STEPS)]
        rollout_s = without[0].rollout_s
        late = [_judged(directory, "late-0", "false", rollout_s, STEPS)]
        for pair in range(1, PAIRS):
            # Who goes first changes, as in every figure.
            late.append(_judged(directory, f"late-{pair}", "false", rollout_s, STEPS))
            without.append(iterations.run(directory, f"without-{pair}", "short", steps=STEPS))
        admit = _judged(directory, "admit", "true", rollout_s, WAITING_STEPS)
        blocking = _judged(directory, "blocking", "true", rollout_s, WAITING_STEPS, "learner.max_staleness=0")
    plain = [r.samples_per_s for r in without]
    details = {"rollout_s": rollout_s, "judge_p99_s": 10 * rollout_s}
    coverage = {"coverage": sum(r.mean("reward/slow_known_frac") for r in late) / len(late)}
    rows = [Figure("slow_judge", "samples/s", [r.samples_per_s for r in late], plain, 0.95, details | coverage)]
    for label, run in (("admit", admit), ("blocking", blocking)):
        coverage = {"coverage": run.mean("reward/slow_known_frac")}
        rows.append(
            Figure(f"slow_judge_{label}", "samples/s", [run.samples_per_s], plain[:1], None, details | coverage)
        )
    return rows


def _judged(directory: Path, name: str, blocking: str, rollout_s: float, steps: int, *overrides: str) -> iterations.Run:
    recipe = directory / f"{name}.toml"
    judge = JUDGE.format(blocking=blocking, median=rollout_s, p99=10 * rollout_s)
    recipe.write_text(iterations.RECIPE.read_text().replace("[learner]", f"{judge}\n[learner]", 1))
    return iterations.run(directory, name, "short", *overrides, steps=steps, recipe=recipe)
