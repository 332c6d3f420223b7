"""Shipped recipes: how long each runs to be verified, its stages, and the metric that shows its method's effect.

`tests/verify/test_recipes.py` runs them and keeps what it saw in `tests/verified.json`;
`python -m tests.verify.recipes` writes that as docs/recipes_verified.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from actors.models import prepare
from cluster.config.engines import ModelSection
from tests.verify.keep import VERIFIED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipes_verified.md"
LONG = 10
"""Runs of fewer steps are small already."""
ENDS = 5
"""An effect is a mean of so many rows at the beginning and at the end of a run."""


class Case(NamedTuple):
    """One recipe's run."""

    effect: str
    """The metric that the method changes."""
    direction: str = ""
    """`rises` or `falls` where the run is long enough to show it; empty where the figure is kept and not judged."""
    steps: int = 20
    stages: tuple[int, ...] = ()
    """Steps after which another stage begins; `{0}`, `{1}` … in `overrides`."""
    overrides: tuple[str, ...] = ()
    """What makes the run short, beside `learner.steps`."""
    within: tuple[float, float] | None = None
    """Bounds of both ends, where the method holds a metric instead of moving it."""

    def capped(self, steps: int) -> Case:
        """At most so many steps, and stages as much shorter. What so short a run shows is kept and not judged."""
        if steps >= self.steps:
            return self
        shorter = tuple(max(1, round(stage * steps / self.steps)) for stage in self.stages)
        few = ("learner.groups_per_step=8", "rollout.concurrent_groups=16", "learner.schedule.warmup_steps=0")
        more = few if self.steps >= LONG else ()
        return self._replace(steps=steps, direction="", within=None, stages=shorter, overrides=(*self.overrides, *more))

    def options(self) -> list[str]:
        """Overrides of the recipe."""
        named = {"teacher": _teacher()} if any("{teacher}" in option for option in self.overrides) else {}
        return [f"learner.steps={self.steps}", *(option.format(*self.stages, **named) for option in self.overrides)]


def _teacher() -> Path:
    """Another model of two-digit addition than recipes with `seed = 1` start from, made if it is not in the cache."""
    return prepare(ModelSection(path="tiny:addition"), seed=0)


def small(effect: str, direction: str = "", *overrides: str, tokens: int = 64, **rest: Any) -> Case:
    """SmolLM2 on two cores: few groups of short rollouts, at a rate that shows an effect in so few steps."""
    shorter = (
        f"rollout.max_tokens={tokens}", "learner.groups_per_step=2", "learner.micro_tokens=1024",
        "learner.schedule.lr=1e-5", "learner.schedule.warmup_steps=0", "engine.max_model_len=512",
        "evaluation.max_tasks=2", *overrides,
    )  # fmt: skip
    return Case(effect, direction, steps=10, overrides=shorter, **rest)


ACCURACY, LENGTH = "eval/accuracy", "rollout/length_tokens"
MEALS = "reward/environment_mean"
"""Share of the episodes of the text world that ended with the meal."""
PROBED = ("evaluation.every_steps=5",)
"""Evaluations during the run, which monitors read."""
CASES: dict[str, Case] = {
    "alpha_llm": Case(ACCURACY, "rises"),
    "amft": Case(ACCURACY, "rises"),
    "anyprefer": Case(LENGTH, "rises"),
    "b_star": Case(ACCURACY, "rises", stages=(4,)),
    "calm": Case("reward/subgoals_mean", "rises"),
    "cispo": Case(ACCURACY, "rises"),
    "clip_delta": Case(ACCURACY, "rises"),
    "co_reward": Case("reward/co_reward_mean", "rises"),
    "collapse": Case("reward/majority_mean", "rises", overrides=PROBED),
    # The score divides one unit between solution and evaluation; near an end one of the two has failed.
    "comas": small(
        "reward/comas_solution_mean",
        "",
        "evaluation.max_tasks=4",
        "policies.second.learner.schedule.lr=1e-5",
        tokens=48,
        within=(0.2, 0.8),
    ),
    "concise": Case(LENGTH, "falls"),
    # The reward model orders more of the held-out pairs; what policy and model come to is in docs/loophole.md.
    "cooper": Case("reward_model/cooper_agreement_frac", "rises"),
    # Nothing pushes the consistency up or down: it weakens pairs on which two rounds disagree.
    "cream": Case(
        "pairs/label_mean", steps=18, stages=(6, 12), overrides=("checkpoint.every_steps={0}",), within=(0.5, 0.95)
    ),
    "dapo": Case(ACCURACY, "rises"),
    "dno": Case("reward/judge_mean", "rises"),
    "dpo": Case(ACCURACY, "rises"),
    "dr_grpo": Case(ACCURACY, "rises"),
    "explors": Case("advantage/num_states", "rises"),
    "features": Case("reward_model/features_loss", "falls"),
    "follow_up": small("reward/follow_up_mean", "rises"),
    "gradient_and_pairs": Case(ACCURACY, "rises"),
    "gspo": Case(ACCURACY, "rises"),
    "heron": Case(MEALS, "rises"),
    "heron_model": Case(MEALS, "rises"),
    "imitation": Case(MEALS, "rises"),
    "ipo": Case("loss/ipo", "falls"),
    "lare": Case(MEALS, "rises"),
    "laser": Case(
        "loss/laser", "falls", stages=(10,), overrides=("learner.sequence_losses.0.options.mix_after_steps={0}",)
    ),
    "lagrangian": Case("reward/too_long_mean", "falls"),
    "length_switch": Case(LENGTH, "falls"),
    "meta_rm": Case("reward_model/meta_rm_loss"),
    "mm_upt": Case("reward/majority_mean", "rises", overrides=("learner.schedule.warmup_steps=2",)),
    "monitors": Case("reward/mean", "rises", overrides=PROBED),
    "oprl": Case(MEALS, "rises"),
    "over_optimisation": Case("reward/format_mean", "rises", overrides=PROBED),
    "par": Case("reward/judge_shaped_mean", "rises"),
    "perceptual": Case(MEALS, "rises"),
    "polar": Case("reward_model/polar_loss", "falls"),
    # The head comes to the level of the returns; it does not tell them apart in so few steps.
    "ppo": Case("loss/value", "falls", steps=40),
    "reinforce_plus_plus": Case(ACCURACY, "rises"),
    "reward_model": Case(LENGTH, "rises"),
    # Right traces that a search found are imitated; the value model learns from the trees meanwhile.
    "rest_mcts": Case(ACCURACY, "rises"),
    "rivals": Case("reward/judge_mean", "rises"),
    "rlsp": Case("rollout/length_tokens", "rises"),
    "rlccf": Case("reward/crowd_mean", "rises"),
    "rloo": Case(ACCURACY, "rises"),
    "rm_r1": Case("reward/verdict_mean", "rises"),
    "scir": Case("scir/inconsistency_nats", "falls"),
    "score": Case("reward/attempts_mean", "rises", stages=(10,), overrides=("controllers.0.options.at={0}",)),
    "self_aligned": Case(ACCURACY, "rises"),
    "self_prm": Case("eval/own/vote_accuracy", "rises"),
    "self_certainty": Case("reward/self_certainty_mean", "rises"),
    "selm": Case(ACCURACY, "rises"),
    "slim": Case("reward/exact_mean", "rises"),
    "spa_rl": Case(MEALS, "rises"),
    # What the critic wins the generator loses; near an end one of the two has won for good.
    "spc": small("reward/spc_mean", "", "evaluation.max_tasks=4", tokens=48, within=(-0.8, 0.8)),
    "spear": Case("reward/exact_mean", "rises"),
    "spiral": Case(ACCURACY, "rises"),
    "spo": Case(LENGTH, "rises"),
    "srum": Case("reward/step_scores_mean"),
    "ssr_zero": Case("reward/exact_mean", "rises"),
    "step_length_switch": Case(LENGTH, "falls"),
    "t_reg": small("loss/t_reg", "falls"),
    # Another warm start stands in for the quickstart's checkpoint: the student comes nearer to it.
    "teacher": Case("reward/teacher_mean", "rises", overrides=("scorers.teacher.model={teacher}",)),
    # The margin of its pairs is held; accuracy is what they are for.
    "temporal": Case(ACCURACY, "rises"),
    # The keyword judge stands in for the user's server.
    "think_rm": Case(LENGTH, "rises", overrides=("judges.judge={{kind='keyword',options={{keywords=['so']}}}}",)),
    "tp_grpo": Case(ACCURACY, "rises"),
    "tree_preferences": Case(LENGTH, "rises"),
}


def stages_of(case: Case, rows: Sequence[dict]) -> list[list[dict]]:
    """A run's steps, cut at the case's stages."""
    bounds = [0, *case.stages, len(rows)]
    return [list(rows[a:b]) for a, b in pairwise(bounds)]


def figure(case: Case, rows: Sequence[dict]) -> tuple[float, float] | None:
    """The effect's metric at both ends of a run; None where no row has it."""
    values = [row[case.effect] for row in rows if row.get(case.effect) is not None]
    if not values:
        return None
    n = 1 if case.effect.startswith("eval/") else min(ENDS, max(1, len(values) // 2))
    return fmean(values[:n]), fmean(values[-n:])


def page() -> str:
    """docs/recipes_verified.md."""
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(VERIFIED.read_text())}
    lines = [HEAD]
    for name, case in CASES.items():
        kept = rows.get(f"recipe_{name}")
        lines.append(_line(name, kept, case) if kept else f"| `{name}` | | | `{case.effect}` | not run yet | | |")
    return "\n".join(lines) + "\n"


HEAD = """# Shipped recipes in real runs

`make verify` runs each recipe of `deploy/recipes/methods/` with real engines, shortened as `tests/verify/recipes.py`
says (KANABO_VERIFY_STEPS=N caps their steps), and keeps what it saw in `tests/verified.json`. Groups are those that
the steps of each stage trained on. The effect is a metric at both ends of the run: the mean of the first and of the
last five rows, of `eval/accuracy` the first and the last. An arrow stands where the test demands a
direction, bounds where the method holds the metric between them. Seconds are of two shared cores, some of them busy
with other work.

This page is made by `python -m tests.verify.recipes`.

| recipe | steps | groups trained, by stage | effect | from → to | seconds | commit |
|---|---|---|---|---|---|---|"""


def _line(name: str, kept: dict[str, Any], case: Case) -> str:
    groups = " + ".join(f"{n:g}" for n in kept["groups_by_stage"])
    judged = f" in {case.within}" if case.within else {"rises": " ↑", "falls": " ↓"}.get(case.direction, "")
    arrow = judged if kept["steps"] == case.steps else ""
    ends = kept["figure"]
    shown = f"{ends[0]:.3g} → {ends[1]:.3g}" if ends else "–"
    return (
        f"| `{name}` | {kept['steps']} | {groups} | `{kept['effect']}`{arrow} | {shown} | {kept['wall_s']:.0f} "
        f"| {kept['commit']} |"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
