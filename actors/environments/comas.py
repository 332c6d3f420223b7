"""A discussion whose agents answer, criticise and grade one another (CoMAS, arXiv:2510.08529).

Numbers and order are the paper's; its prompts were not at hand, and these are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pydantic import NonNegativeInt, PositiveInt

from actors.environments.multi_policy import MultiPolicyEnvironment, Participants
from cluster.thoughts import spoken_by
from cluster.types import Rollout, Task

SOLUTION, EVALUATION, SCORE = "solution", "evaluation", "score"
"""Variants of the rollouts: what each is for."""
PLACE = re.compile(r"\{(question|discussion|solution|evaluation)\}")
CLIPPED = 2000
"""Characters that are quoted of one utterance."""


class CoMas(MultiPolicyEnvironment):
    """Rounds of three utterances, each by a policy drawn evenly: a solution, which sees the last exchanges, an
    evaluation of it, and a score of 1 to 3 for how well the solution stands up to the evaluation.

    In the prompts {question}, {discussion}, {solution} and {evaluation} are filled in, without thoughts. With the
    reward `comas` a solution and its evaluation share what there is, so that neither gains by praise.
    """

    rounds: PositiveInt | None = None
    """Rounds of one group; by default twice the number of policies (m = 2l)."""
    memory: NonNegativeInt = 2
    """Exchanges, of solution and evaluation, that the next solution sees (κ)."""
    solve: str = (
        "{discussion}Question: {question}\n\nSolve it step by step. If there is a discussion above, use what is right "
        "in it. End with the answer."
    )
    """Asks for a solution."""
    evaluate: str = (
        "Question: {question}\n\nA proposed solution:\n{solution}\n\nEvaluate it critically: say where it is wrong or "
        "incomplete, or that it is sound, and why."
    )
    """Asks for an evaluation."""
    score: str = (
        "Question: {question}\n\nA proposed solution:\n{solution}\n\nAn evaluation of it:\n{evaluation}\n\nHow does "
        "the solution stand? 3: it is right, and the evaluation finds nothing. 2: it is right in part. 1: it is wrong, "
        "and the evaluation shows it. End with the number in tags, like this: <score>2</score>"
    )
    """Asks for a score."""

    def size(self, num_policies: int) -> int:
        return 3 * self._rounds(num_policies)

    async def hold(self, task: Task, cast: Participants) -> Sequence[Rollout]:
        rollouts: list[Rollout] = []
        exchanges: list[str] = []

        async def say(variant: str, template: str, parent: int | None, **known: str) -> str:
            prompt = PLACE.sub(lambda place: known.get(place[1], ""), template)
            rollout = await cast.say(cast.random.choice(cast.policies), prompt)
            rollouts.append(replace(rollout, variant=variant, parent=parent))
            return spoken_by(rollout)[:CLIPPED]

        for _ in range(self._rounds(len(cast.policies))):
            seen = "".join(exchanges[max(0, len(exchanges) - self.memory) :])
            known = {"question": task.prompt, "discussion": seen}
            first = len(rollouts)
            known["solution"] = await say(SOLUTION, self.solve, None, **known)
            known["evaluation"] = await say(EVALUATION, self.evaluate, first, **known)
            await say(SCORE, self.score, first + 1, **known)
            exchanges.append(f"Solution:\n{known['solution']}\n\nEvaluation:\n{known['evaluation']}\n\n")
        return rollouts

    def _rounds(self, num_policies: int) -> int:
        return self.rounds or 2 * num_policies
