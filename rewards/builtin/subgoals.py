"""Sub-goals that a judge sees reached in the transition of a turn (CALM, arXiv:2409.12798)."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt, PrivateAttr

from cluster.thoughts import spoken
from cluster.types import FAILED, SCORED, Group, Message, Provenance, Scores
from rewards.base import Reward, Services
from rewards.judges.backends.keyword import SUBGOALS
from rewards.learned.episodes import Episode, at_step_ends, episodes_of

FENCE = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
MAX_DICT_CHARS = 2000
TRANSITION = """Task: {task}
{legend}Sub-goals: {subgoals}

Observation at time 0:
{before}

Action at time 0: {action}

Observation at time 1:
{after}

Which sub-goals hold at time 1 and did not hold at time 0? What the observation at time 1 reports came about by the \
action. Answer with one fenced Python dictionary that has every sub-goal as a key and True or False as its value."""
REACHED = "reached "
"""Text of an event that says which sub-goal was reached begins so."""
ENDED = "(the episode has ended)"


class Subgoals(Reward):
    """Sum over turns of the sub-goals that a judge sees reached in the turn; each pays once an episode.

    CALM (arXiv:2409.12798): r′ = r + Σ_g 1[g reached in this transition], with the environment's r another reward. A
    judge is shown observation, action and next observation, and answers a dictionary; one that cannot be read is
    a missing label, which pays nothing and lowers `reward/logged_subgoals_coverage`, as the paper's code discards it.
    A judge that cannot be reached leaves the rollout unknown. That each pays once is ours. Where the environment notes
    `reached NAME` itself, `reward/logged_subgoals_f1` compares the labels with that.
    """

    services: ClassVar = ("judge",)
    judge: str = "judge"
    """The section `[judges.NAME]`."""
    subgoals: tuple[str, ...] = ()
    """Sub-goals; by default those of the task's `meta["subgoals"]`."""
    legend: str = ""
    """What the symbols of an observation mean."""
    each: float = 1.0
    """What a sub-goal pays."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge."""
    max_tokens: PositiveInt = 512
    """Most tokens of the judge's answer."""
    _asked: str = PrivateAttr(default="")

    def version(self) -> str:
        shown = json.dumps([SUBGOALS, TRANSITION, self.subgoals, self.legend])
        return f"{hashlib.sha256(shown.encode()).hexdigest()[:12]}+{self._asked}"

    async def prepare(self, services: Services) -> None:
        self._asked = services.judge(self.judge).identity

    async def score(self, group: Group, services: Services) -> Scores:
        subgoals = self.subgoals or tuple(map(str, group.task.meta.get("subgoals", ())))
        episodes = [e for e in episodes_of(group) if e.steps]
        if not subgoals or not episodes:
            return Scores.abstained(len(group), "the task names no sub-goals" if not subgoals else "there are no turns")
        found = await asyncio.gather(*(self._labels(group, e, subgoals, services) for e in episodes))
        tokens = at_step_ends(group, episodes, [self.each * pays(labels, subgoals) for labels, _ in found])
        state = np.full(len(group), SCORED, np.uint8)
        notes = [""] * len(group)
        for episode, (_, failure) in zip(episodes, found, strict=True):
            for i in episode.rollouts if failure else ():
                state[i], notes[i] = FAILED, failure
        values = np.where(state == SCORED, [t.sum() for t in tokens], np.nan)
        tokens = tuple(np.where(s == SCORED, t, np.nan) for s, t in zip(state, tokens, strict=True))
        return Scores(values, state, tuple(Provenance(note=note) for note in notes), self.version(), tokens)

    async def _labels(
        self, group: Group, episode: Episode, subgoals: Sequence[str], services: Services
    ) -> tuple[list[dict[str, bool] | None], str]:
        """Return the labels of every turn, None where they cannot be read, and why the judge failed, if it did."""
        after = [step.seen for step in episode.steps[1:]] + [ENDED]
        legend = f"Legend: {self.legend}\n" if self.legend else ""
        asked = [
            TRANSITION.format(
                task=group.task.prompt, legend=legend, subgoals=", ".join(subgoals),
                before=step.seen, action=step.done, after=seen,
            )
            for step, seen in zip(episode.steps, after, strict=True)
        ]  # fmt: skip
        how: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        chats = [(Message("system", SUBGOALS), Message("user", text)) for text in asked]
        answers = [a for (a,) in await asyncio.gather(*(services.complete(self.judge, c, **how) for c in chats))]
        failure = next((a.provenance.note or "no answer" for a in answers if a.text is None), "")
        labels = [None if a.text is None else read_labels(a.text, subgoals) for a in answers]
        services.log("subgoals_coverage", float(np.mean([label is not None for label in labels])))
        truth = [
            {e.text.removeprefix(REACHED) for e in step.events if e.text.startswith(REACHED)} for step in episode.steps
        ]
        if any(truth):
            services.log("subgoals_f1", f1([(label, own) for label, own in zip(labels, truth, strict=True) if label]))
        return labels, failure


def read_labels(reply: str, subgoals: Sequence[str]) -> dict[str, bool] | None:
    """Return the dictionary in the one fence of a reply; None unless it has each sub-goal as a key, and booleans.

    It is read as a literal, and nothing in it is evaluated.
    """
    fences = FENCE.findall(spoken(reply))
    if len(fences) != 1 or len(fences[0]) > MAX_DICT_CHARS:
        return None
    try:
        found = ast.literal_eval(fences[0].strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != set(subgoals):
        return None
    return found if all(type(value) is bool for value in found.values()) else None


def pays(labels: Sequence[dict[str, bool] | None], subgoals: Sequence[str]) -> np.ndarray:
    """Return how many sub-goals each turn [K] is the first to reach."""
    had, result = set[str](), np.zeros(len(labels))
    for k, label in enumerate(labels):
        new = {name for name in subgoals if label and label[name]} - had
        result[k] = len(new)
        had |= new
    return result


def f1(pairs: Sequence[tuple[dict[str, bool], set[str]]]) -> float:
    """F1 of labels against the sub-goals that were reached, over all turns; 0 where neither names any."""
    said = [({name for name, holds in label.items() if holds}, truth) for label, truth in pairs]
    hits = sum(len(label & truth) for label, truth in said)
    named = sum(len(label) + len(truth) for label, truth in said)
    return 2 * hits / named if named else 0.0
