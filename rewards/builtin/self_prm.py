"""A solver judges the steps of its own samples, so that the best of them can be chosen (Self-PRM, arXiv:2505.11227)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import PositiveInt, model_validator

from cluster.plugins import build
from cluster.types import Group, Message, Scores
from rewards.base import Services
from rewards.builtin.steps import StepScores
from rewards.judges.templates import TEMPLATES

CORRECT = 0.5
"""A step's score, as a share of the scale, from which on the step is called correct."""


class SelfPrm(StepScores):
    """Share of a rollout's steps that `[judges.NAME]` calls correct; the judge is the policy itself, `kind = "policy"`.

    For `vote = "self_prm"` of `[[evaluations]]` and of `kanabo evaluate`, and for weight 0: the paper finds less than a
    tenth of such verdicts right on hard problems, so it is no reward to train on without a verifier. Watch
    `eval/NAME/verdict_precision_hard`. That the share of correct steps is a sample's score is our reading.
    `own_reference` is Self-REF: the judge first writes a solution of its own, which every sample is compared with.
    """

    own_reference: bool = False
    """Have the judge solve the task first; the paper finds that this helps weak judges alone."""
    reference_max_tokens: PositiveInt = 2048
    """Most tokens of that solution."""
    reference_options: dict[str, Any] = {}
    """Fields of the template `steps_reference`, which shows the solution to the judge."""

    @model_validator(mode="after")
    def _shown_reference(self) -> SelfPrm:
        if self.own_reference:
            self._template = build(TEMPLATES, "steps_reference", self.reference_options, "reference_options")
        return self

    async def score(self, group: Group, services: Services) -> Scores:
        if self.own_reference:
            asked = (Message("user", group.task.prompt),)
            (answer,) = await services.complete(self.judge, asked, max_tokens=self.reference_max_tokens)
            if answer.text is None:
                note = f"no reference solution: {answer.provenance.note}"
                return Scores.failed(len(group), note)
            group = replace(group, task=replace(group.task, answer=answer.text))
        found = await super().score(group, services)
        return replace(found, values=np.array([correct_frac(steps) for steps in found.tokens or ()]))


def correct_frac(steps: np.ndarray) -> float:
    """Share of the known scores of steps that reach `CORRECT`; NaN where none is known."""
    known = steps[np.isfinite(steps)]
    return float(np.mean(known >= CORRECT)) if len(known) else np.nan
