"""A reward model that learns from a judge's preferences while the policy does (Bradley-Terry; arXiv:2401.06080)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from pydantic import NonNegativeInt

from cluster.config import RewardModelSection
from cluster.errors import InfrastructureError
from cluster.thoughts import spoken_by
from cluster.types import Group, Provenance, Scores
from rewards.aggregation.selectors.leaf_pairs import drawn_evenly, leaf_pairs
from rewards.base import Services
from rewards.learned.base import RewardModelReward, Versioned
from rewards.learned.caption_labels import Complete
from rewards.learned.client import RewardModelClient
from rewards.learned.labels import pair
from rewards.learned.response_labels import ResponseJudge, written


class LearnedReward(RewardModelReward):
    """r(x, y) [G] of the reward model published last, a logit: P(y beats y′) = σ(r(x, y) − r(x, y′)).

    Of every group it asks for labels of `pairs` pairs of distinct responses, drawn at random, and waits for none. Until
    a first version is published it fails: with `missing = "wait"` groups wait for it, `missing = 0.0` trains on the
    other rewards meanwhile. Texts are those of `responses.written`,
    without thoughts.
    """

    model: str = "reward_model"
    """The section `[reward_models.NAME]` of the reward model."""
    pairs: NonNegativeInt = 4
    """Per group; a group of G distinct responses has G(G−1)/2."""

    async def score(self, group: Group, services: Services) -> Scores:
        texts = [written(group.task, spoken_by(rollout)) for rollout in group.rollouts]
        follower = services.reward_model(self.model)
        await follower.submit([pair(*two) for two in self.drawn(group, texts)], group=list(dict.fromkeys(texts)))
        values, version = await scores_of(follower, texts)
        return Scores.of(values, Provenance(model=self.model), version=version)

    def drawn(self, group: Group, texts: Sequence[str]) -> list[tuple[str, str]]:
        """Return the pairs of texts of a group that are to be labelled."""
        possible = list(combinations(dict.fromkeys(texts), 2))
        # By the group's id: scored again under the next version, it asks for nothing new.
        return random.Random(group.id).sample(possible, min(self.pairs, len(possible)))

    def labels_per_group(self, group_size: int) -> int | None:
        return min(self.pairs, group_size * (group_size - 1) // 2)

    def labels_by(self, section: RewardModelSection, complete: Complete | None, *, compares: bool) -> Versioned:
        return ResponseJudge(complete, judge=section.judge)


class TreeReward(LearnedReward):
    """r(x, y) [G] of a reward model whose pairs are leaves of a tree of responses (arXiv:2402.10184).

    Pairs are drawn evenly from the depths of their lowest common ancestors, so that comparisons of leaves that share a
    prefix are coupled; the model reads whole responses, on which the paper's did better than on the parts that differ.
    For groups of the environment `tree`; a group without paths is compared as `reward_model` does.
    """

    def drawn(self, group: Group, texts: Sequence[str]) -> list[tuple[str, str]]:
        at_depth = leaf_pairs(group.rollouts)
        if not at_depth:
            return super().drawn(group, texts)
        distinct = {d: [(i, j) for i, j in found if texts[i] != texts[j]] for d, found in at_depth.items()}
        places = drawn_evenly(distinct, self.pairs, random.Random(group.id))
        return list(dict.fromkeys((texts[i], texts[j]) for i, j in places))


async def scores_of(follower: RewardModelClient, texts: Sequence[str]) -> tuple[np.ndarray, str]:
    """[N] and the version that gave them. Raises InfrastructureError while there is none."""
    if not follower.published:
        await follower.refresh()
    predicted = await follower.predict(texts)
    if not follower.published:
        raise InfrastructureError(
            f"no version of the reward model '{follower.name}' is published yet. Its labels come during the run: "
            "missing = 'wait' lets groups wait for the first, missing = 0.0 does without."
        )
    return predicted.values, predicted.version
