"""How different two rewards are, apart from what cannot change the best policy (STARC, arXiv:2309.15257)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rewards.monitors.base import Judged, Monitor


def canonical(
    reward: Float[np.ndarray, "S A S"], transitions: Float[np.ndarray, "S A S"], gamma: float
) -> Float[np.ndarray, "S A"]:
    """c(s, a) = E[R(s, a, s′) − V(s) + γ V(s′)], V being the value of the uniform policy.

    Potential shaping and what is added with expectation 0 over s′ vanish.
    """
    expected = (transitions * reward).sum(2)
    following = transitions.mean(1)
    value = np.linalg.solve(np.eye(len(following)) - gamma * following, expected.mean(1))
    return expected - value[:, None] + gamma * transitions @ value


def distance(one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]) -> float:
    """½ · ‖a/‖a‖ − b/‖b‖‖ in [0, 1], of two canonical rewards; one without any difference in it (norm 0) stays 0."""
    return float(np.linalg.norm(_unit(one) - _unit(other)) / 2)


def group_distance(one_G: Sequence[Float[np.ndarray, " G"]], other_G: Sequence[Float[np.ndarray, " G"]]) -> float:
    """The sampled form, of two rewards of the same rollouts: versions of a judge, a learned reward and a verifier.

    Each reward's mean over a group is taken off, the groups are strung together, and the distance is taken of that. The
    choice of baseline is ours. Rollouts that either leaves unknown are left out; NaN if none is left.
    """
    pairs = [(a, b, np.isfinite(a) & np.isfinite(b)) for a, b in zip(one_G, other_G, strict=True)]
    pairs = [(a[known], b[known]) for a, b, known in pairs if known.any()]
    if not pairs:
        return float("nan")
    return distance(np.concatenate([a - a.mean() for a, _ in pairs]), np.concatenate([b - b.mean() for _, b in pairs]))


class Starc(Monitor):
    """Distance of one reward from another, or from the mixture that is trained on, over the step's groups, in [0, 1].

    0: they could not lead to different policies, 1: opposite. Give the other one, a verifier or another version of the
    judge, as a reward with `weight = 0`. Versions of a model that learns during the run are compared by its trainer.
    """

    reward: str
    """Name of a reward of the recipe."""
    other: str = ""
    """By default what is trained on."""

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(f"reward/{name}_mean" for name in (self.reward, self.other) if name)

    def measure(self, judged: Sequence[Judged]) -> dict[str, float]:
        asked = [one for one in judged if self.reward in one.scores and (not self.other or self.other in one.scores)]
        ours = [one.scores[self.reward].values for one in asked]
        theirs = [one.scores[self.other].values if self.other else one.mixed.rewards for one in asked]
        return {f"reward/{self.reward}_starc_distance": group_distance(ours, theirs)}


def _unit(values: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(values)
    # What rounding leaves of a constant is no direction.
    return values / norm if norm > 1e-12 else np.zeros_like(values)
