"""What a reward that is only recorded would have changed, had it been trained on. Pure."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

ROUNDING = 1e-9
"""A difference so small, relative to the largest value, is none."""


def agreement(shadow: Float[np.ndarray, " G"], trained: Float[np.ndarray, " G"]) -> float:
    """Do they put a group in the same order? Somers' D of the shadow given the trained reward, −1 to 1.

    Over pairs that the trained reward tells apart and of which all four values are known: those in the same order less
    those in the opposite one, over all of them; a tie of the shadow counts as neither (R. H. Somers, American
    Sociological Review 27, 1962, p. 799). 1: the same order, 0: none in common or no opinion, −1: reversed. Unlike a
    correlation it does not care about scale, and a trained reward of 0 and 1 can reach 1. NaN without such a pair.
    """
    known = np.isfinite(shadow) & np.isfinite(trained)
    first, second = np.triu_indices(int(known.sum()), k=1)
    ours, theirs = _signs(shadow[known], first, second), _signs(trained[known], first, second)
    told_apart = theirs != 0
    return float((ours * theirs)[told_apart].mean()) if told_apart.any() else float("nan")


def sign_flip_frac(shadow: Float[np.ndarray, " G"], trained: Float[np.ndarray, " G"]) -> float:
    """Share of the rollouts whose advantage would change its sign: pushed down instead of up, or up instead of down.

    The advantage here is the reward less the group's mean over what it knows; dividing by a spread or leaving oneself
    out of the mean changes no sign. One of the two being 0 is no flip. Of rollouts both know; NaN if there are none.
    """
    known = np.isfinite(shadow) & np.isfinite(trained)
    if not known.any():
        return float("nan")
    ours, theirs = (_sign(values - np.nanmean(_finite(values)), values) for values in (shadow, trained))
    return float((ours * theirs < 0)[known].mean())


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _signs(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return _sign(values[first] - values[second], values)


def _sign(differences: np.ndarray, values: np.ndarray) -> np.ndarray:
    """−1, 0, 1 of differences between such values; of the unknown NaN, which is no flip."""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return np.where(np.abs(differences) <= ROUNDING * largest, 0.0, np.sign(differences))
