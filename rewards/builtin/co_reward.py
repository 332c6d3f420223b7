"""Answers to a question rewarded by the vote on another wording of it (Co-Reward, arXiv:2508.00410)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from cluster.types import ABSTAINED, SCORED, Group, Provenance, Scores
from rewards.base import Reward, Services
from rewards.parsing.answers import votes_of

Answers = Mapping[str, Sequence[str | None]]
"""Variant → answers of its rollouts, in their order; None is no answer."""


class _Variants(Reward):
    scope: ClassVar = "task"
    min_variants: ClassVar = 2
    extract: Literal["auto", "text", "tag", "boxed", "hashes", "last_number"] = "auto"
    """Where the answer stands."""

    def _answers(self, group: Group) -> dict[str, list[str | None]]:
        answers: dict[str, list[str | None]] = {}
        for rollout, answer in zip(group.rollouts, votes_of(group.rollouts, self.extract), strict=True):
            answers.setdefault(rollout.variant, []).append(answer)
        return answers


class CoReward(_Variants):
    """1 where a rollout gives the answer that is most common under the *other* variants of its task, else 0.

    With variants O and A of K rollouts each (`rollout.prompt_variants`): ỹ_O = majority(a^A), ỹ_A = majority(a^O), and
    r^O_i = 1[a^O_i = ỹ_O]; with more than two variants the others vote together (ours). No answer is no vote; of
    equally common answers the one that came first wins. The group's rollouts are one [G] array, variants one after the
    other, and advantages are taken within each variant. Where no other variant has an answer there is no label: those
    rollouts abstain; the released code gives them 0, which is `missing = 0.0`.

    One answer to everything is no way out as long as wordings differ in what they make it say; a rewrite that changes
    the answer gives both variants a wrong label (see `variant_agreement`). Source: the released code,
    `coreward/verl/workers/reward_manager/co_reward.py`; variants are made beforehand, by a stronger model.
    """

    async def score(self, group: Group, services: Services) -> Scores:
        answers = self._answers(group)
        labels = cross_labels(answers)
        own = {variant: iter(found) for variant, found in answers.items()}
        values = np.array(
            [
                np.nan if labels[r.variant] is None else next(own[r.variant]) == labels[r.variant]
                for r in group.rollouts
            ],
            float,
        )
        unlabelled = [variant for variant, label in labels.items() if label is None]
        note = f"no answer to any variant but {', '.join(unlabelled)}" if unlabelled else ""
        state = np.where(np.isnan(values), ABSTAINED, SCORED).astype(np.uint8)
        return Scores(values, state, (Provenance(note=note),))


class VariantAgreement(_Variants):
    """1 where all variants of a task have the same most common answer, else 0; unknown where one has none.

    To be recorded (`weight = 0`): a task that stays at 0 for epochs has a rewrite with another answer (ours).
    """

    async def score(self, group: Group, services: Services) -> Scores:
        votes = [majority(found) for found in self._answers(group).values()]
        if None in votes:
            return Scores.abstained(len(group), "a variant without an answer")
        return Scores.of([len(set(votes)) == 1] * len(group))


def cross_labels(answers: Answers) -> dict[str, str | None]:
    """Variant → the most common answer under all other variants, None where they have none."""
    return {
        variant: majority([a for other in answers if other != variant for a in answers[other]]) for variant in answers
    }


def majority(answers: Sequence[str | None]) -> str | None:
    """The most common answer, of equally common ones the first; None where there is none."""
    votes = Counter(a for a in answers if a is not None)
    return votes.most_common(1)[0][0] if votes else None
