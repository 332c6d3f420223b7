"""Which rollouts and pairs of a cut are trained on, and how they are numbered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cluster.config import LearnerSection
from cluster.types import CutRecord, Group, Trained


def with_replayed(groups: Sequence[Group], record: CutRecord) -> tuple[list[Group], CutRecord]:
    """Groups and record with the replayed rollouts behind the step's own; they are in no pair."""
    more = record.replayed
    return [*groups, *(r.group for r in more)], replace(
        record,
        groups=(*record.groups, *(r.group.id for r in more)),
        rewards=(*record.rewards, *(r.rewards for r in more)),
        advantages=(*record.advantages, *(r.advantages for r in more)),
        pairs=(*record.pairs, *(() for _ in more)) if record.pairs else (),
        token_weights=(*record.token_weights, *(() for _ in more)) if record.token_weights else (),
    )


def places_of(groups: Sequence[Group], record: CutRecord, section: LearnerSection) -> list[tuple[int, int]]:
    """(group, rollout) of what is trained on, in order.

    Known rewards, and tokens to train on; where pairs alone are trained on, the rollouts of pairs.
    """
    only_pairs = section.loss.coef == 0 and bool(record.pairs)
    places = []
    for g, (group, rewards) in enumerate(zip(groups, record.rewards, strict=True)):
        keep = np.isfinite(rewards)
        if only_pairs:
            whole = [p for p in record.pairs[g] if keep[p.chosen] and keep[p.rejected]]
            members = {i for p in whole for i in (p.chosen, p.rejected, p.third)}
            keep &= [i in members for i in range(len(group))]
        places += [(g, int(i)) for i in np.flatnonzero(keep) if group.rollouts[i].loss_mask[1:].any()]
    return places


def trained_of(groups: Sequence[Group], record: CutRecord, places: list[tuple[int, int]]) -> Trained:
    """What loss terms are told about these rollouts."""
    number = {place: n for n, place in enumerate(places)}
    pairs = []
    for g, of_group in enumerate(record.pairs):
        for p in of_group:
            chosen, rejected = number.get((g, p.chosen)), number.get((g, p.rejected))
            if chosen is not None and rejected is not None:  # one that is left out, or is empty, compares with nothing
                third = None if p.third is None else number.get((g, p.third))
                pairs.append(replace(p, chosen=chosen, rejected=rejected, third=third))
    weighted = []
    for g, i in places:
        weights = weights_of(record, g, i)
        weighted.append(weights is not None and bool(np.isfinite(weights[groups[g].rollouts[i].loss_mask]).all()))
    return Trained(
        group=np.array([g for g, _ in places], np.int64),
        weighted=np.array(weighted, bool),
        pairs=tuple(pairs),
    )


def weights_of(record: CutRecord, g: int, i: int) -> np.ndarray | None:
    """[T], NaN where unknown; None where nothing was said of the group."""
    return record.token_weights[g][i] if record.token_weights and record.token_weights[g] else None
