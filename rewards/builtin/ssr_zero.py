"""The policy in training scores its own translations (SSR-Zero, arXiv:2505.16637)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from cluster.thoughts import whole_text
from cluster.types import SCORED, Group, Provenance, Rollout, Scores
from rewards.base import Services
from rewards.builtin.format import MATCHES, _compiles, matches
from rewards.judges.judge_reward import JudgeReward
from rewards.parsing.answers import tagged

UNGATED = Provenance(note="not in the layout that is asked for")


class SsrZero(JudgeReward):
    """score / 100 of `[judges.NAME]`, which for SSR-Zero is the live policy itself: kind = "policy".

    The judge sees the source and the translation, no reference, and may think (template `assessment`). A rollout that
    is not in the `layout` gets 0 and is not asked about (`gate`), or goes without the bonus of one that is (`add`):
    whether the paper gates or adds is not known to us. What the judge says and nobody can read is `failed`; the
    method's value for it is `missing = 0.0`. SSR-X is a second reward of weight 0.5 beside this one of 0.5, from any
    other scorer. Inflation is seen against a frozen judge: the same reward again with weight 0 and a judge of the
    initial model.
    """

    services: ClassVar = ("judge", "verify")
    template: str = "assessment"
    layout: Annotated[str, AfterValidator(_compiles)] = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"
    """Regular expression for the whole text of a rollout."""
    format_mode: Literal["gate", "add"] = "gate"
    """`gate`: a rollout outside of the layout scores 0 and the judge is not asked; `add`: one in the layout gets
    `format_bonus`."""
    format_bonus: float = Field(default=0.1, ge=0)
    """With `add`: what a rollout in the layout gets on top."""
    layout_timeout_s: float = 5.0
    """Seconds that matching the layout of one group may take."""

    async def prepare(self, services: Services) -> None:
        await super().prepare(services)
        await services.sandbox.prepare(MATCHES)

    async def score(self, group: Group, services: Services) -> Scores:
        texts = [whole_text(r) for r in group.rollouts]
        kept = np.array(await matches(services, self.layout, texts, self.layout_timeout_s), bool)
        if self.format_mode == "add":
            scores = await super().score(group, services)
            return replace(scores, values=scores.values + self.format_bonus * kept)
        return await self._gated(group, services, kept)

    async def _gated(self, group: Group, services: Services, kept: np.ndarray) -> Scores:
        values, state = np.zeros(len(group)), np.full(len(group), SCORED, np.uint8)
        provenance = [UNGATED] * len(group)
        if kept.any():
            rollouts = tuple(r for r, k in zip(group.rollouts, kept, strict=True) if k)
            found = await super().score(replace(group, rollouts=rollouts), services)
            values[kept], state[kept] = found.values, found.state
            for place, whose in zip(np.flatnonzero(kept), _each(found.provenance, len(rollouts)), strict=True):
                provenance[place] = whose
        return Scores(values, state, tuple(provenance), self.version())

    def _shown(self, rollout: Rollout) -> str:
        """The translation alone, where it is marked as the answer."""
        text = super()._shown(rollout)
        answer = tagged(text)
        return text if answer is None else answer


def _each(provenance: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return provenance if len(provenance) == count else provenance * count
