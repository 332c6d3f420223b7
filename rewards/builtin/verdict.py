"""What a judge in training is rewarded for: its verdict against a known one, by the rules of three papers."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import PositiveInt, model_validator

from cluster.errors import ConfigError
from cluster.thoughts import spoken_by
from cluster.types import Group, Scores, Task
from rewards.base import Reward, Services

TAIL_CHARS = 80
ANSWER = re.compile(r"<answer>\s*([+-]?\d{1,2})\s*</answer>", re.ASCII)
BOX = re.compile(r"\\boxed\{([^{}]{0,400})\}")
STRENGTHS = (-3, -2, -1, 1, 2, 3)


class VerdictReward(Reward):
    """A judge's verdict, compared with the label that `task.answer` holds; the source of the tasks is `verdicts`.

    `pair` (RM-R1, arXiv:2505.02387): +1 if exactly one of the two `tags` stands in the last `tail_chars` characters and
    it is the label's, else −1. `binary` is the same as 1 and 0. `strength` (Think-RM, arXiv:2505.16265): 1 for the
    label itself between −3 and 3, ½ for another strength of its sign, else 0. `list` (SPCT, arXiv:2504.02495): +1 if
    the response that the labels put first has strictly the highest score, or a single response has its label, else −1;
    another number of scores than of responses is wrong. What cannot be read is wrong and not unknown: the policy wrote
    it. A label that is none of those allowed is an error of the data.
    """

    scope: ClassVar = "rollout"
    rule: Literal["pair", "binary", "strength", "list"] = "pair"
    """How verdict and label are compared."""
    labels: tuple[str, str] = ("A", "B")
    """The labels that a pair may have."""
    tags: tuple[str, str] = ("<answer>[[A]]</answer>", "<answer>[[B]]</answer>")
    """How the judge writes them."""
    tail_chars: PositiveInt = TAIL_CHARS
    """A tag counts if it stands in the last so many characters."""

    @model_validator(mode="after")
    def _apart(self) -> VerdictReward:
        if self.tags[0] in self.tags[1] or self.tags[1] in self.tags[0]:
            raise ValueError(f"tags {self.tags[0]!r} and {self.tags[1]!r}: one holds the other")
        return self

    def check(self, task: Task) -> None:
        try:
            self.of("", task.answer)
        except ValueError as error:
            raise ConfigError(f"task {task.id}: {error}") from error

    async def score(self, group: Group, services: Services) -> Scores:
        try:
            return Scores.of([self.of(spoken_by(rollout), group.task.answer) for rollout in group.rollouts])
        except ValueError as error:
            return Scores.abstained(len(group), str(error))

    def of(self, text: str, label: str | None) -> float:
        """The reward of one answer. Raises ValueError for a label that the rule has no use for."""
        if self.rule in ("pair", "binary"):
            right = pair_verdict(text, label, self.labels, self.tags, self.tail_chars)
            return float(right) if self.rule == "binary" else 2.0 * right - 1.0
        if self.rule == "strength":
            return strength_reward(text, label)
        return list_reward(text, label)


def pair_verdict(
    text: str, label: str | None, labels: tuple[str, str], tags: tuple[str, str], tail_chars: int = TAIL_CHARS
) -> bool:
    """Whether exactly one tag stands in the tail, and it is the label's. Raises ValueError for another label."""
    if label not in labels:
        raise ValueError(f"the label {label!r} is neither {labels[0]!r} nor {labels[1]!r}")
    tail = text[-tail_chars:]
    found = [name for name, tag in zip(labels, tags, strict=True) if tag in tail]
    return found == [label]


def strength_reward(text: str, label: str | None) -> float:
    """1 for the label, ½ for another strength of the same sign, else 0. Raises ValueError for another label."""
    if label is None or label not in map(str, STRENGTHS):
        raise ValueError(f"the label {label!r} is none of {', '.join(map(str, STRENGTHS))}")
    found = ANSWER.findall(text)
    if len(found) != 1 or int(found[0]) not in STRENGTHS:
        return 0.0
    said, gold = int(found[0]), int(label)
    return 1.0 if said == gold else 0.5 * (said * gold > 0)


def list_reward(text: str, label: str | None) -> float:
    """±1 by `ranks_best`, from the last box of the text. Raises ValueError for labels without a single best."""
    try:
        gold = [float(part) for part in (label or "").split(",")]
    except ValueError:
        raise ValueError(f"the label {label!r} is no list of numbers") from None
    if len(gold) > 1 and sorted(gold)[-1] == sorted(gold)[-2]:
        raise ValueError(f"the labels {label!r} have no single best")
    found = BOX.findall(text)
    try:
        said = [float(part) for part in found[-1].split(",")] if found else []
    except ValueError:
        return -1.0
    return 1.0 if ranks_best(said, gold) else -1.0


def ranks_best(said: list[float], gold: list[float]) -> bool:
    """Whether the scores put strictly first what the labels do; of one response, whether they are equal (SPCT)."""
    if len(said) != len(gold):
        return False
    if len(gold) == 1:
        return said == gold
    best = gold.index(max(gold))
    return all(said[best] > value for i, value in enumerate(said) if i != best)
