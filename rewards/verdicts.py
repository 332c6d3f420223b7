"""Scores from rollouts judged one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.types import SCORED, Provenance, Scores


def scores(verdicts: Sequence[tuple[float, int, str]]) -> Scores:
    """Scores from (value, state, note) per rollout; the value counts where the state is SCORED."""
    values, states, notes = zip(*verdicts, strict=True)
    state = np.array(states, np.uint8)
    values = np.where(state == SCORED, np.array(values, np.float64), np.nan)
    provenance = tuple(Provenance(note=n) for n in notes) if any(notes) else ()
    return Scores(values, state, provenance)
