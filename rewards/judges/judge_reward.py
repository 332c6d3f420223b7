"""A judge as a reward: levels of a scale, win rates against the rest of the group, or ranks within it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, PrivateAttr, model_validator

from cluster.plugins import build
from cluster.thoughts import spoken_by, whole_text
from cluster.types import ABSTAINED, FAILED, SCORED, Group, Provenance, Rollout, Scores, Task
from rewards.aggregation.preferences import strength_advantages
from rewards.base import Reward, Services
from rewards.judges.ensembles import Cached, Ensemble, Shuffled, Swap, Vote
from rewards.judges.statistics import rank_scores, win_rates
from rewards.judges.templates import TEMPLATES, Item, Mode, Template
from rewards.judges.types import Judge, Request, Verdict, merged

CUT_OFF = "\n[The response ends here because it reached its limit of length.]"


class JudgeReward(Reward):
    """Asks `[judges.NAME]` about every distinct response of a group.

    One response a prompt: its level, by default as a share of the scale. A pair: mean over the other rollouts of the
    probability to win (SPO, arXiv:2401.04056), equal texts counting half. A list: share of the others ranked below.
    """

    scope: ClassVar = "group"
    services: ClassVar = ("judge",)
    judge: str | tuple[str, ...] = "judge"
    """Its section's name; of several the mean is taken."""
    template: str = "pointwise"
    """How the question is put: a name of `rewards/judges/templates`, or `package.module:Class`."""
    template_options: dict[str, Any] = {}
    """Fields of the template, such as its rubric."""
    mode: Mode | None = None
    """By default `label`, or `text` for templates whose verdict is more than a label."""
    votes: PositiveInt = 1
    """Samples per question; more than one need a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; 0 is greedy."""
    max_tokens: PositiveInt = 1024
    """Tokens that the judge may write for reasons and verdict."""
    logprobs: bool = True
    """Read labels as expected values where the judge gives log-probs."""
    min_mass: float = Field(default=0.8, gt=0, le=1)
    """Probability that the labels must have together for log-probs to count; below it the label that was written
    counts."""
    swap: bool = True
    """Ask about pairs in both orders; else in one, drawn at random."""
    combine: Literal["probability", "log_odds", "winner"] = "probability"
    """How two orders become one number."""
    normalise: bool = True
    """Levels of a scale as shares of it, [0, 1]."""
    listwise: Literal["rank", "mean"] = "rank"
    """`mean`: the mean score itself (SPCT, arXiv:2504.02495), as a share of the scale if `normalise`."""
    thoughts: bool = False
    """Show the judge the thoughts too, such as what stands in <think>…</think>."""
    pairwise: Literal["win_rate", "advantage"] = "win_rate"
    """`advantage`: mean signed strength in units of their spread (Think-RM, arXiv:2505.16265), about 0."""
    cached: bool = True
    """Ask the judge once about equal questions, and reuse its answer."""
    _template: Template = PrivateAttr()
    _asked: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _consistent(self) -> JudgeReward:
        self._template = build(TEMPLATES, self.template, self.template_options, "template")
        if self.mode is not None and self.mode not in self._template.modes:
            raise ValueError(f"mode '{self.mode}' is none of {', '.join(self._template.modes)} of '{self.template}'")
        n = self._template.num_responses
        if self.votes > 1 and self.temperature == 0 and (n == 1 or (n == 2 and self.swap)):
            raise ValueError(f"votes = {self.votes} at temperature 0 are the same answer {self.votes} times")
        return self

    async def prepare(self, services: Services) -> None:
        judges = [services.judge(name) for name in self._names]
        for judge in judges:
            await judge.accept(self._template, logprobs=self.logprobs)
        self._asked = tuple(judge.identity for judge in judges)

    def version(self) -> str:
        """Return the version of template and judges: with another rubric or model, stored groups are judged again."""
        return "+".join((self._template.hash, *self._asked))

    def declines(self, task: Task) -> str:
        wanting = self._template.needs_reference and not task.answer
        return f"task {task.id} has no reference answer" if wanting else ""

    async def score(self, group: Group, services: Services) -> Scores:
        task, template = group.task, self._template
        if self.declines(task):
            return Scores.abstained(len(group), self.declines(task))
        if template.num_responses != 1 and len(group) < 2:
            return Scores.abstained(len(group), "there is nothing to compare a single rollout with")
        judge = self._judge(services)
        texts = [self._shown(r) for r in group.rollouts]
        distinct = list(dict.fromkeys(texts))
        place = [distinct.index(text) for text in texts]
        if template.num_responses == 1:
            verdicts = await asyncio.gather(*(judge.ask(self._request(group, [text])) for text in distinct))
            values = [self._scaled(v.values[0]) for v in verdicts]
            return _scores([values[p] for p in place], [verdicts[p] for p in place], self.version())
        if template.num_responses == 2:
            return await self._win_rates(group, judge, distinct, place)
        verdict = await judge.ask(self._request(group, distinct))
        values = [verdict.values[p] for p in place]
        ranked = rank_scores(values) if self.listwise == "rank" else [self._scaled(v) for v in values]
        return _scores(ranked, [verdict], self.version())

    async def _win_rates(self, group: Group, judge: Judge, distinct: Sequence[str], place: Sequence[int]) -> Scores:
        pairs = list(combinations(range(len(distinct)), 2))
        requests = (self._request(group, [distinct[i], distinct[j]]) for i, j in pairs)
        found = dict(zip(pairs, await asyncio.gather(*map(judge.ask, requests)), strict=True))
        table = np.full((len(distinct), len(distinct)), 0.5)  # equal texts, without a call
        for (i, j), verdict in found.items():
            table[i, j], table[j, i] = verdict.values[0], 1 - verdict.values[0]  # NaN on both sides if unknown
        preferences = table[np.ix_(place, place)]
        rates = win_rates(preferences) if self.pairwise == "win_rate" else strength_advantages(2 * preferences - 1)
        nobody = Verdict((0.5,), note="all responses are equal")
        about = [[v for pair, v in found.items() if p in pair] or [nobody] for p in place]
        # Equal texts alone are no evidence: with the judge down a copied response would still get a half.
        rates[[not any(v.scored for v in verdicts) for verdicts in about]] = np.nan
        return _scores(rates, [_summary(verdicts) for verdicts in about], self.version())

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.judge,) if isinstance(self.judge, str) else self.judge

    def _judge(self, services: Services) -> Judge:
        pools = [services.judge(name) for name in self._names]
        judges: list[Judge] = [Cached(pool) if self.cached else pool for pool in pools]
        judge = judges[0] if len(judges) == 1 else Ensemble("+".join(self._names), judges)
        if self._template.num_responses == 2 and self.swap:
            judge = Swap(judge, self.combine)
        elif self._template.num_responses != 1:
            judge = Shuffled(judge)
        return Vote(judge, self.votes) if self.votes > 1 else judge

    def _request(self, group: Group, responses: Sequence[str]) -> Request:
        return Request(
            self._template,
            Item(group.task.prompt, tuple(responses), group.task.answer),
            self.mode or self._template.modes[0],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            logprobs=self.logprobs,
            min_mass=self.min_mass,
        )

    def _shown(self, rollout: Rollout) -> str:
        text = whole_text(rollout) if self.thoughts else spoken_by(rollout)
        return text + CUT_OFF if rollout.truncated else text

    def _scaled(self, value: float) -> float:
        lowest, highest = self._template.bounds
        return (value - lowest) / (highest - lowest) if self.normalise else value


def _summary(verdicts: Sequence[Verdict]) -> Verdict:
    """What stands behind one rollout's win rate: the known pairs, or why there is none."""
    known = [v for v in verdicts if v.scored]
    some = merged(known or list(verdicts), (math.nan,))
    note = f"{len(known)} of {len(verdicts)} opponents" if known else verdicts[0].note
    # A pair's cost is shared by its two rollouts.
    return Verdict(
        some.values,
        SCORED if known else min(v.state for v in verdicts),
        note,
        judge=some.judge,
        model=some.model,
        prompt_hash=some.prompt_hash,
        attempt=some.attempt,
        latency_s=some.latency_s,
        cost_tokens=sum(v.cost_tokens for v in verdicts) // 2,
    )


def _scores(values: Any, verdicts: Sequence[Verdict], version: str) -> Scores:
    """`verdicts`: one per rollout, or one for all."""
    array = np.array(values, np.float64)
    unknown = [ABSTAINED if v.state == ABSTAINED else FAILED for v in verdicts]
    state = np.where(np.isfinite(array), SCORED, unknown).astype(np.uint8)
    provenance: tuple[Provenance, ...] = tuple(v.provenance() for v in verdicts)
    return Scores(np.where(np.isfinite(array), array, np.nan), state, provenance, version)
