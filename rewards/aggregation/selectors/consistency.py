"""Preference labels softened by the agreement of two scorers (CREAM, arXiv:2410.12735, released code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.preferences import pairs_of
from rewards.aggregation.selectors.base import Selector, values_of, with_pairs


class Consistency(Selector):
    """Best and worst by the scorer `first`, labelled c = (τ + 1) / 2, τ being its rank correlation with `second`.

    In the paper the scorers are the implicit rewards log π(y) − log π₀(y) of the current model and of the one before.
    Where they disagree c is near ½ and the loss (`dpo`) prefers nothing; below ½ it prefers the rejected one. The
    label is the mean of c over the step's groups, as the release does by default, or the group's own; a group without
    a correlation, where a scorer calls all equal, gets the mean.
    """

    first: str
    """Name of the reward that ranks."""
    second: str
    """Name of the reward that is asked for agreement; `weight = 0` keeps it out of the reward."""
    how: Literal["kendall", "spearman", "top"] = "kendall"
    """`top`: 1 where best and worst coincide, else 0."""
    ranks: Literal["shared", "ordinal"] = "shared"
    """Ranks of equal scores. `shared`: they have one rank, and a group that a scorer calls all equal has no
    correlation; `ordinal`: the earlier rollout ranks lower, so that every group has one."""
    average: bool = True
    """Label all pairs with the step's mean."""
    reward_fields: ClassVar[tuple[str, ...]] = ("first", "second")

    def select(self, group: Group, scores: Mapping[str, Scores], mixed: GroupReward) -> GroupReward:
        """Select within a group that is the whole step."""
        return self.of_step([group], [scores], [mixed])[0]

    def of_step(
        self, groups: Sequence[Group], scores: Sequence[Mapping[str, Scores]], mixed: Sequence[GroupReward]
    ) -> list[GroupReward]:
        first, second = (
            [values_of(name, s, m) for s, m in zip(scores, mixed, strict=True)] for name in (self.first, self.second)
        )
        agreement = np.array([consistency(a, b, self.how, self.ranks) for a, b in zip(first, second, strict=True)])
        known = agreement[np.isfinite(agreement)]
        if not len(known):  # nothing is known of any label
            return [with_pairs(m, ()) for m in mixed]
        label = np.where(np.isnan(agreement) | self.average, known.mean(), agreement)
        return [
            with_pairs(m, [replace(p, label=float(c)) for p in pairs_of(_extremes(v), v, "consistency")])
            for m, v, c in zip(mixed, first, label, strict=True)
        ]


def _extremes(values: Float[np.ndarray, " G"]) -> list[tuple[int, int]]:
    known = np.isfinite(values)
    if not known.any() or np.ptp(values[known]) == 0:
        return []
    return [(int(np.nanargmax(values)), int(np.nanargmin(values)))]


def consistency(a: Float[np.ndarray, " G"], b: Float[np.ndarray, " G"], how: str, ranks: str = "shared") -> float:
    """Agreement of two rankings, 0 to 1; NaN where one of them ranks nothing. Only what both know counts."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if ranks == "ordinal":
        a, b = ordinal(a), ordinal(b)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    if how == "top":
        return float(a.argmax() == b.argmax() and a.argmin() == b.argmin())
    return ((kendall(a, b) if how == "kendall" else spearman(a, b)) + 1) / 2


def ordinal(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Ranks from 0, the lowest value first; of equal ones the earlier is lower."""
    ranks = np.empty(len(values))
    ranks[values.argsort(kind="stable")] = np.arange(len(values))
    return ranks


def kendall(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> float:
    """τ-b: ties count as neither order, and the scale is that of the pairs that are not tied."""
    signs_a, signs_b = (np.sign(np.subtract.outer(x, x)) for x in (a, b))
    return float((signs_a * signs_b).sum() / np.sqrt((signs_a**2).sum() * (signs_b**2).sum()))


def spearman(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> float:
    """Correlation of the ranks; equals share the mean of theirs."""
    ranks = [(np.sign(np.subtract.outer(x, x)).sum(1)) for x in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])
