"""One of several samples of a task: how a vote chooses it, and how good the choice is.

`kanabo evaluate --vote` and `[[evaluations]]` use the same votes and figures.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.aggregation.selectors.votes import borda_winner, weighted_winner
from rewards.parsing.equality import votes

RIGHT = 0.5
"""A reward above it is a right answer, and a value above it calls a sample right."""
HARD = 0.5
"""A task of which fewer of the samples are right than this share is hard."""


@dataclass(frozen=True, slots=True)
class GradedSample:
    """One sample of a task."""

    task: str
    reward: float
    """What the reward that grades gives it; NaN if it is unknown."""
    answer: str | None
    """As it stands in the text; None without one."""
    value: float = 0.0
    """What the reward that the vote goes by gives it; NaN if it is unknown."""


@dataclass(frozen=True, slots=True)
class Voting:
    """How one of several samples is chosen."""

    kind: str
    by: str = ""
    """The reward that weighs, ranks or judges; empty where every sample counts the same."""
    power: float = 0.5

    def winner(self, answers: Sequence[str | None], values: Sequence[float]) -> int | None:
        """Place of the sample that stands for a task; None where nobody votes.

        `answers` of equal meaning are equal (`votes`), and None has no vote; `values` are those of the reward `by`.
        """
        found = np.array(values, np.float64)
        if self.kind == "weighted":
            return weighted_winner(found, answers)
        if self.kind == "self_prm":
            return self_prm_winner(found, answers)
        return borda_winner(found, answers, self.power if self.kind == "borda" else 0.0)


def self_prm_winner(values: Sequence[float] | np.ndarray, answers: Sequence[str | None]) -> int | None:
    """Place of the sample whose solver thinks most of it; of equals the one of the larger group of answers, then the
    first (Self-PRM, arXiv:2505.11227, by a write-up; the ties are ours). None where no value is known.
    """
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    size = Counter(answer for answer in answers if answer)
    best = max(known, key=lambda i: (values[i], size[answers[i] or ""], -i), default=None)
    return best


def voted(voting: Voting, samples: Sequence[GradedSample]) -> dict[str, float]:
    """`vote_accuracy`, the mean reward of the sample that each task's vote chooses, and `num_without_vote`.

    Where nobody votes the first sample stands for the task. A task whose chosen sample has no known reward is in no
    mean; without any the mean is NaN.
    """
    chosen, without = [], 0
    for own in by_task(samples):
        winner = voting.winner(votes([s.answer for s in own]), [s.value for s in own])
        without += winner is None
        chosen.append(own[winner or 0].reward)
    known = [reward for reward in chosen if math.isfinite(reward)]
    return {
        "vote_accuracy": float(np.mean(known)) if known else math.nan,
        "num_without_vote": float(without),
    }


def verdicts(samples: Sequence[GradedSample]) -> dict[str, float]:
    """How well the values tell right samples from wrong ones (arXiv:2505.11227): what Self-PRM must be watched by.

    `verdict_precision` of those called right, also over `hard` tasks alone, where the paper finds it below a tenth;
    `verdict_recall` of the right ones; `verdict_f1`, the harmonic mean of the accuracies on wrong and on right samples
    (ProcessBench's). Samples of unknown value or reward do not count; NaN where there is nothing to divide by.
    """
    known = [s for s in samples if math.isfinite(s.value) and math.isfinite(s.reward)]
    hard = [s for own in by_task(known) if _right_frac(own) < HARD for s in own]
    right, wrong = [s for s in known if s.reward > RIGHT], [s for s in known if s.reward <= RIGHT]
    recall, specificity = _frac(_called(right)), _frac([not called for called in _called(wrong)])
    both = recall + specificity
    return {
        "verdict_precision": precision(known),
        "verdict_precision_hard": precision(hard),
        "verdict_recall": recall,
        "verdict_f1": 2 * recall * specificity / both if both > 0 else both,
    }


def precision(samples: Sequence[GradedSample]) -> float:
    """Share of the samples called right that are; NaN if none is called right."""
    return _frac([s.reward > RIGHT for s in samples if s.value > RIGHT])


def accuracy(samples: Sequence[GradedSample]) -> dict[str, float]:
    """`accuracy`, the mean over tasks of the mean known reward, and `pass_at_k`, the share with one right sample."""
    known = [[s.reward for s in own if math.isfinite(s.reward)] for own in by_task(samples)]
    means, best = [np.mean(own) for own in known if own], [max(own) > RIGHT for own in known if own]
    return {"accuracy": float(np.mean(means)) if means else math.nan, "pass_at_k": _frac(best)}


def by_task(samples: Sequence[GradedSample]) -> list[list[GradedSample]]:
    """The samples of each task, in the order in which they came."""
    found: dict[str, list[GradedSample]] = defaultdict(list)
    for sample in samples:
        found[sample.task].append(sample)
    return list(found.values())


def _called(samples: Sequence[GradedSample]) -> list[bool]:
    return [s.value > RIGHT for s in samples]


def _right_frac(samples: Sequence[GradedSample]) -> float:
    return _frac([s.reward > RIGHT for s in samples])


def _frac(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan
