"""A judge on every step of a rollout: how sound it is, or whether the solution itself takes it back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, PrivateAttr, field_validator, model_validator

from cluster.config import RewardSection
from cluster.plugins import build
from cluster.thoughts import thoughts_end
from cluster.types import ABSTAINED, SCORED, Group, Provenance, Rollout, Scores, Task
from rewards.base import Reward, Services
from rewards.judges.ensembles import Cached
from rewards.judges.templates import TEMPLATES, Item, Template
from rewards.judges.types import Request, Verdict
from rewards.parsing.steps import PARAGRAPH, Step, steps_of
from rewards.registry import build_reward
from rewards.sandbox.pool import Target

ENDS = Target("rewards.sandbox.patterns", "ends")


class _StepJudge(Reward):
    scope: ClassVar = "rollout"
    services: ClassVar = ("judge", "text")
    judge: str = "judge"
    """Name of the judge's section."""
    separator: str = PARAGRAPH
    """Regular expression of what ends a step; by default an empty line. Another one is matched in the sandbox, because
    backtracking can take forever."""
    separator_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that matching `separator` on one rollout may take."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; 0 is greedy."""
    max_tokens: PositiveInt = 2048
    """Most tokens of the judge's answer."""
    _asked: str = PrivateAttr(default="")

    @field_validator("separator")
    @classmethod
    def _compiles(cls, separator: str) -> str:
        try:
            re.compile(separator)
        except re.error as error:
            raise ValueError(f"separator is not a regular expression: {error}") from error
        return separator

    def evaluates(self) -> bool:
        return self.separator != PARAGRAPH

    async def prepare(self, services: Services) -> None:
        if self.separator != PARAGRAPH:
            await services.sandbox.prepare(ENDS)
        judge = services.judge(self.judge)
        for template in self._templates():
            await judge.accept(template, logprobs=False)
        self._asked = judge.identity
        await services.thread(lambda: services.text([]))  # loaded before a group waits for it

    def version(self) -> str:
        return "+".join((*(t.hash for t in self._templates()), self._asked))

    def _templates(self) -> Sequence[Template]:
        raise NotImplementedError

    async def _ask(self, template: Template, group: Group, steps: Sequence[Step], services: Services) -> Verdict:
        item = Item(group.task.prompt, tuple(step.text for step in steps), group.task.answer)
        request = Request(
            template, item, "text", temperature=self.temperature, max_tokens=self.max_tokens, logprobs=False
        )
        return await Cached(services.judge(self.judge)).ask(request)

    async def _steps(self, rollout: Rollout, services: Services) -> list[Step]:
        breaks = None if self.separator == PARAGRAPH else await self._breaks(rollout.text, services)
        return await services.thread(lambda: steps_of(rollout, services.text, breaks))

    async def _breaks(self, text: str, services: Services) -> list[int]:
        found = await services.verify(ENDS, self.separator, text, timeout_s=self.separator_timeout_s)
        if not isinstance(found, list) or not all(type(end) is int and 0 <= end <= len(text) for end in found):
            raise ValueError(f"the separator's process answered {found!r:.80}")
        return sorted(set(found))


class StepScores(_StepJudge):
    """A judge's score of every step as a share of its scale: [T] with q_k at the last token of step k, NaN elsewhere.

    The rollout's own value is their mean, or their minimum. As it stands, summed up, it can be farmed by more steps:
    shape it with `clip_delta`. Steps are those of a single turn's text, cut by `separator`; a token belongs to the step
    that it completes. A process reward model of another kind is any reward with token scores of this form.
    """

    template: str = "steps"
    """How the judge is asked about the steps: a name of `rewards/judges/templates`, or `package.module:Class`."""
    template_options: dict[str, Any] = {}
    """Fields of the template."""
    value: Literal["mean", "min"] = "mean"
    """What the rollout as a whole is worth: the mean of its steps, or the lowest, as B-STaR takes it."""
    _template: Template = PrivateAttr()

    @model_validator(mode="after")
    def _built(self) -> StepScores:
        self._template = build(TEMPLATES, self.template, self.template_options, "template")
        return self

    def _templates(self) -> Sequence[Template]:
        return (self._template,)

    async def score(self, group: Group, services: Services) -> Scores:
        judged = await asyncio.gather(*(self._rollout(group, rollout, services) for rollout in group.rollouts))
        whole = np.nanmean if self.value == "mean" else np.nanmin
        return _scores([(float(whole(t)) if v.scored else np.nan, t, v) for t, v in judged], self.version())

    async def _rollout(self, group: Group, rollout: Rollout, services: Services) -> tuple[np.ndarray, Verdict]:
        steps = await self._steps(rollout, services)
        tokens = np.full(len(rollout.tokens), np.nan)
        if not steps:
            return tokens, _nothing("nothing was written")
        verdict = await self._ask(self._template, group, steps, services)
        low, high = self._template.bounds
        for step, value in zip(steps, verdict.values, strict=True):
            tokens[step.end - 1] = (value - low) / (high - low)
        return tokens, verdict


class Thoughts(_StepJudge):
    """1 on tokens of thoughts that count against a rollout's outcome, else 0: for the advantage `tp_grpo`, weight 0.

    TP-GRPO (arXiv:2507.23317, by a write-up of it). A judge labels steps by cues within the solution, which needs no
    ability to solve the task. Of a right one: those that it later takes back (`step_reflections`). Of a wrong one:
    those that do not match what the wrong answer rests on (`step_matches`), which are uncertain; steps of its answer
    part, behind the last thought or the last one where there is none, always match. Equal neighbours are one thought,
    which needs no merging here: every token has its thought's label. The value is the share of the rollout's tokens
    that are flagged. A rollout that the verifier does not know abstains; an unreadable judge fails.
    """

    verifier: str = "exact"
    """The reward that says whether a rollout is right, as in `[[rewards]] use`."""
    verifier_options: dict[str, Any] = {}
    """Options of the reward that `verifier` names."""
    correct: float = 1.0
    """Its scores from here on are right."""
    reflections_options: dict[str, Any] = {}
    """Options of the template `step_reflections`."""
    matches_options: dict[str, Any] = {}
    """Options of the template `step_matches`."""
    _verifier: Reward = PrivateAttr()
    _reflections: Template = PrivateAttr()
    _matches: Template = PrivateAttr()

    @model_validator(mode="after")
    def _built(self) -> Thoughts:
        section = RewardSection(use=self.verifier, options=self.verifier_options)
        self._verifier = build_reward(section, "rewards.thoughts.verifier")
        self._reflections = build(TEMPLATES, "step_reflections", self.reflections_options, "reflections")
        self._matches = build(TEMPLATES, "step_matches", self.matches_options, "matches")
        return self

    def _templates(self) -> Sequence[Template]:
        return self._reflections, self._matches

    def declines(self, task: Task) -> str:
        return self._verifier.declines(task)

    def evaluates(self) -> bool:
        return super().evaluates() or self._verifier.evaluates()

    async def prepare(self, services: Services) -> None:
        await super().prepare(services)
        await self._verifier.prepare(services)

    async def score(self, group: Group, services: Services) -> Scores:
        outcome = (await self._verifier.score(group, services)).values
        judged = await asyncio.gather(
            *(self._rollout(group, r, o, services) for r, o in zip(group.rollouts, outcome, strict=True))
        )
        shares = [
            float(t[r.loss_mask].mean()) if v.scored else np.nan
            for r, (t, v) in zip(group.rollouts, judged, strict=True)
        ]
        return _scores([(s, t, v) for s, (t, v) in zip(shares, judged, strict=True)], self.version())

    async def _rollout(
        self, group: Group, rollout: Rollout, outcome: float, services: Services
    ) -> tuple[np.ndarray, Verdict]:
        unknown = np.full(len(rollout.tokens), np.nan)
        if np.isnan(outcome):
            return unknown, _nothing("the verifier does not know whether it is right")
        steps = await self._steps(rollout, services)
        if not steps:
            return unknown, _nothing("nothing was written")
        right = outcome >= self.correct
        verdict = await self._ask(self._reflections if right else self._matches, group, steps, services)
        if not verdict.scored:
            return unknown, verdict
        flags = np.zeros(len(rollout.tokens))
        matched = 0 if right else answer_steps(steps)
        for step, label in zip(steps[: len(steps) - matched], verdict.values, strict=False):
            flags[step.start : step.end] = label == 0
        return flags, verdict


def answer_steps(steps: Sequence[Step]) -> int:
    """How many steps at the end are the answer part: those behind the last thought, at least the last one."""
    thought = [i for i, step in enumerate(steps) if thoughts_end(step.text)]
    return max(1, len(steps) - 1 - thought[-1]) if thought else 1


def _nothing(why: str) -> Verdict:
    return Verdict((), ABSTAINED, why)


def _scores(judged: Sequence[tuple[float, np.ndarray, Verdict]], version: str) -> Scores:
    values = np.array([value for value, _, _ in judged], np.float64)
    state = np.array([SCORED if v.scored else v.state for _, _, v in judged], np.uint8)
    provenance: tuple[Provenance, ...] = tuple(v.provenance() for _, _, v in judged)
    return Scores(values, state, provenance, version, tuple(tokens for _, tokens, _ in judged))
