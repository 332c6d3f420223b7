"""Every selector by name: `[[selectors]]`. Yours is `package.module:Class`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.config import SelectorSection
from cluster.errors import PluginError, calling
from cluster.plugins import build
from cluster.types import Group, GroupReward, Scores
from rewards.aggregation.selectors.base import Selector
from rewards.aggregation.selectors.consistency import Consistency
from rewards.aggregation.selectors.leaf_pairs import LeafPairs
from rewards.aggregation.selectors.pairs import Best, BestWorst, LargeMargin, Likeliest, Neighbours, TokenWeights
from rewards.aggregation.selectors.srum import Srum
from rewards.aggregation.selectors.temporal import Temporal
from rewards.aggregation.selectors.threshold import Threshold
from rewards.aggregation.selectors.votes import Borda

SELECTORS: dict[str, type[Selector]] = {
    "best": Best,
    "best_worst": BestWorst,
    "borda": Borda,
    "consistency": Consistency,
    "large_margin": LargeMargin,
    "leaf_pairs": LeafPairs,
    "likeliest": Likeliest,
    "neighbours": Neighbours,
    "srum": Srum,
    "temporal": Temporal,
    "threshold": Threshold,
    "token_weights": TokenWeights,
}

__all__ = ["SELECTORS", "Selection", "Selector"]


class Selection:
    """The selectors of a recipe, one after the other. Raises ConfigError for one that is unknown."""

    def __init__(self, sections: Sequence[SelectorSection]) -> None:
        self._selectors = [
            build(SELECTORS, section.use, section.options, f"selectors[{i}]") for i, section in enumerate(sections)
        ]

    def __call__(
        self, groups: Sequence[Group], scores: Sequence[Mapping[str, Scores]], mixed: Sequence[GroupReward]
    ) -> list[GroupReward]:
        found = list(mixed)
        for i, selector in enumerate(self._selectors):
            where = f"selectors[{i}] ({type(selector).__name__})"
            with calling(where):
                found = list(selector.of_step(groups, scores, found))
            if len(found) != len(groups) or not all(isinstance(one, GroupReward) for one in found):
                raise PluginError(
                    f"{where} returned {found!r:.80} for {len(groups)} groups; one GroupReward each is expected."
                )
        return found
