"""A game of a generator of subtle errors and a critic of single steps (SPC, arXiv:2504.19162)."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field, PositiveInt

from actors.environments.multi_policy import MultiPolicyEnvironment, Participants
from cluster.errors import DataError
from cluster.thoughts import spoken_by
from cluster.types import Event, Message, Rollout, Task

SNEAKY, CRITIC = "sneaky", "critic"
"""Agents of the rollouts: what each is for."""
ANSWER = re.compile(r"<Answer>\s*(Correct|Incorrect)\s*</Answer>", re.IGNORECASE)
STEP = re.compile(r"<Step>(.*?)</Step>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
OPENING = "The solution begins with this step."
"""Stands for an empty partial solution."""
KINDS = (
    "a slip of arithmetic", "a sign that is turned round", "a number that is copied wrongly",
    "a condition of the problem that is forgotten", "a conclusion that does not follow",
)  # fmt: skip
"""Kinds of errors that a step may be given; the paper has a taxonomy of its own."""
CRITICISE = (
    "You check one step of a solution. Summarise the partial solution in a sentence, criticise the last step shortly, "
    "and end with <Answer>Correct</Answer> or <Answer>Incorrect</Answer>."
)
CORRUPT = (
    "You are given a problem, a partial solution and its correct next step. Rewrite that step so that it contains "
    "{kind}, which is hard to notice and leads to a wrong answer. Write the step in tags: <Step>…</Step>"
)
COMPLETE = "Continue the solution from where it stands, step by step, and end with the answer as a number."


@dataclass(frozen=True, slots=True)
class Position:
    """A partial solution and its next step."""

    problem: str
    partial: str
    step: str

    def text(self, last: str) -> str:
        """Return the three sections that critic and generator read; `last` names the step."""
        return f"## Problem\n{self.problem}\n\n## Partial Solution\n{self.partial or OPENING}\n\n## {last}\n{self.step}"


class SneakyCritic(MultiPolicyEnvironment):
    """Rounds in which one policy spoils a correct step and another judges it, or judges a step that is correct.

    SPC (arXiv:2504.19162). The critic gets +1 for a right verdict and −1 for a wrong one, the generator the opposite;
    a text without a verdict, and an error that is not valid, have an unknown reward. An error is valid if completions
    from the correct step succeed in at least `least_success` of `completions` and those from the spoilt one never: our
    reading, since the paper's check is not in its release. Of the rounds every second one shows the correct step, so
    that "always Incorrect" loses. Solutions are lists of correct steps in the task's field `steps`; the answer is the
    last number of a completion. Prompts are ours.
    """

    rounds: PositiveInt = 4
    """Rounds of one group; every second one leaves one rollout, the others two."""
    sneaky: str = "sneaky"
    """The policy that spoils steps: a section `[policies.NAME]`, or `policy`."""
    critic: str = "policy"
    """The policy that judges steps."""
    completer: str = "policy"
    """The policy whose completions say whether an error is one."""
    completions: PositiveInt = 4
    """M: completions from each of the two steps."""
    least_success: float = Field(default=0.75, ge=0, le=1)
    """Share of the completions from the correct step that come to the answer."""
    steps: str = "steps"
    """Field of the task's `meta` with the correct steps, a list of texts."""

    def size(self, num_policies: int) -> int:
        return 2 * self.rounds

    async def hold(self, task: Task, cast: Participants) -> Sequence[Rollout]:
        steps = task.meta.get(self.steps)
        if not isinstance(steps, list | tuple) or not steps or task.answer is None:
            raise DataError(f"task {task.id} needs an answer, and a list of correct steps in meta['{self.steps}'].")
        rollouts: list[Rollout] = []
        for number in range(self.rounds):
            place = cast.random.randrange(len(steps))
            correct = Position(task.prompt, "\n".join(map(str, steps[:place])), str(steps[place]))
            rollouts += await (self._spoilt if number % 2 == 0 else self._kept)(task, correct, cast, len(rollouts))
        return rollouts

    async def _kept(self, task: Task, correct: Position, cast: Participants, first: int) -> list[Rollout]:
        """Judge a correct step."""
        said = await self._say(cast, self.critic, CRITICISE, correct.text("Last Step"))
        verdict = read_verdict(spoken_by(said))
        return [_rewarded(said, CRITIC, None, critic_reward(verdict, correct=True), "correct step")]

    async def _spoilt(self, task: Task, correct: Position, cast: Participants, first: int) -> list[Rollout]:
        """Spoil a step and judge it."""
        kind = cast.random.choice(KINDS)
        spoilt = await self._say(cast, self.sneaky, CORRUPT.format(kind=kind), correct.text("Correct Next Step"))
        found = STEP.search(spoken_by(spoilt))
        if found is None or not found[1].strip() or found[1].strip() == correct.step.strip():
            return [_rewarded(spoilt, SNEAKY, None, math.nan, "no error")]
        wrong = replace(correct, step=found[1].strip())
        rates = await asyncio.gather(*(self._success(task, p, cast) for p in (correct, wrong)))
        if not is_valid(*rates, least=self.least_success):
            return [_rewarded(spoilt, SNEAKY, None, math.nan, "not valid")]
        said = await self._say(cast, self.critic, CRITICISE, wrong.text("Last Step"))
        reward = critic_reward(read_verdict(spoken_by(said)), correct=False)
        return [
            _rewarded(spoilt, SNEAKY, None, -reward, "valid"),
            _rewarded(said, CRITIC, first, reward, "error step"),
        ]

    async def _success(self, task: Task, position: Position, cast: Participants) -> float:
        """Return the share of completions behind a step that come to the answer."""
        said = await asyncio.gather(
            *(self._say(cast, self.completer, COMPLETE, position.text("Last Step")) for _ in range(self.completions))
        )
        ends = [NUMBER.findall(spoken_by(rollout)) for rollout in said]
        return sum(bool(found) and same_number(found[-1], str(task.answer)) for found in ends) / len(ends)

    async def _say(self, cast: Participants, policy: str, system: str, text: str) -> Rollout:
        if policy not in cast.policies:
            raise DataError(f"there is no policy '{policy}'; known: {', '.join(cast.policies)}.")
        return await cast.speak(policy, (Message("user", f"{system}\n\n{text}"),))


def read_verdict(text: str) -> bool | None:
    """Return whether the last verdict in tags is `Correct`; None where there is none."""
    found = ANSWER.findall(text)
    return found[-1].lower() == "correct" if found else None


def critic_reward(verdict: bool | None, *, correct: bool) -> float:
    """+1 for a right verdict, −1 for a wrong one, NaN without one (SPC, arXiv:2504.19162)."""
    return math.nan if verdict is None else 1.0 if verdict == correct else -1.0


def is_valid(original: float, spoilt: float, *, least: float = 0.75) -> bool:
    """Return whether completions say that the spoilt step is an error and the original is none."""
    return original >= least and spoilt == 0


def same_number(one: str, other: str) -> bool:
    """Return whether two texts are the same number."""
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _rewarded(rollout: Rollout, agent: str, parent: int | None, reward: float, event: str) -> Rollout:
    return replace(rollout, agent=agent, parent=parent, reward=reward, events=(*rollout.events, Event(event, 0)))
