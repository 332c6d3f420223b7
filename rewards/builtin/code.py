"""Programs against their test cases, in the sandbox."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

from cluster.thoughts import spoken_by
from cluster.types import FAILED, SCORED, Group, Rollout, Scores, Task
from rewards.base import Reward, Services
from rewards.cases import Case, cases_of, program_of
from rewards.sandbox.launch import SandboxError, SandboxLost
from rewards.sandbox.pool import Target
from rewards.verdicts import scores

PROGRAMS = "rewards.sandbox.programs"
RUN, HOST, EXAMINE = (Target(PROGRAMS, name, warm=True) for name in ("run", "host", "examine"))
FUNCTIONS = {"call": Target(PROGRAMS, "call", warm=True), "equal": Target(PROGRAMS, "evaluate", warm=True)}
MAX_CHARS = 200_000


class Undecided(Exception):
    """The tests say nothing about the program."""


known_cases = lru_cache(maxsize=256)(cases_of)


class Code(Reward):
    """1 where the program passes every test case of the task, else 0; with `partial` the share that it passes.

    The program is the last fenced Python block behind the thoughts. Cases stand in the task's reference, in the forms
    of verl and prime-rl: inputs and outputs of a script or of a function, assert statements, or code of tests. Each
    case is a process of its own in the sandbox, and what must come out is compared outside of it: tests that are code
    run in a second process, which asks the program's. Tests that cannot be decided that way fail with the reason. A
    program that raises, ends badly or takes longer than `case_timeout_s` fails its case. Raise `timeout_s` of the
    reward if a group's cases take longer in all.
    """

    services: ClassVar = ("verify",)
    partial: bool = False
    """The share of cases that pass, instead of all or nothing."""
    max_cases: PositiveInt | None = None
    """Only the first so many cases count; all by default."""
    case_timeout_s: PositiveFloat = 6.0
    """Seconds that the program may take for one case."""
    memory_mib: PositiveInt = 1024
    """Address space of a case's process."""

    def declines(self, task: Task) -> str:
        return "the task has no test cases" if task.answer is None else ""

    async def prepare(self, services: Services) -> None:
        await services.sandbox.prepare(RUN)

    async def score(self, group: Group, services: Services) -> Scores:
        if group.task.answer is None:
            return Scores.abstained(len(group), self.declines(group.task))
        try:
            cases = known_cases(group.task.answer)[: self.max_cases]
        except ValueError as error:
            return Scores.failed(len(group), str(error))
        programs = [_program(rollout) for rollout in group.rollouts]
        # Equal programs are run once.
        verdicts = {p: self._check(p, cases, services) for p in set(programs)}
        known = dict(zip(verdicts, await asyncio.gather(*verdicts.values()), strict=True))
        return scores([known[p] for p in programs])

    async def _check(self, program: str, cases: list[Case], services: Services) -> tuple[float, int, str]:
        if not program.strip() or len(program) > MAX_CHARS:
            return 0.0, SCORED, ""
        passed = 0
        try:
            for case in cases:
                if await self._passes(program, case, services):
                    passed += 1
                elif not self.partial:
                    return 0.0, SCORED, ""
        except (SandboxLost, Undecided) as error:
            return float("nan"), FAILED, str(error)
        return passed / len(cases) if self.partial else 1.0, SCORED, ""

    async def _passes(self, program: str, case: Case, services: Services) -> bool:
        if case.kind == "stdin":
            return await self._prints(program, case, services)
        limits = {"timeout_s": self.case_timeout_s, "memory_bytes": self.memory_mib << 20}
        try:
            if case.kind == "tests":
                found = await services.sandbox.call_beside(EXAMINE, [case.given, case.name], HOST, [program], **limits)
                if "undecided" in found:
                    raise Undecided(found["undecided"])
                return found["passed"] is True
            value = await services.sandbox.call(FUNCTIONS[case.kind], [program, case.name, case.given], **limits)
        except TimeoutError:
            return False
        except SandboxLost:
            raise
        except SandboxError:
            return False
        return case.passes(value)

    async def _prints(self, program: str, case: Case, services: Services) -> bool:
        outcome = await services.sandbox.run(
            RUN,
            [program],
            self.case_timeout_s,
            stdin=case.given.encode(errors="replace"),
            memory_bytes=self.memory_mib << 20,
        )
        if outcome.how not in ("end", "time"):
            raise SandboxLost(f"the program's process {outcome.trouble()}")
        return not outcome.trouble() and case.passes(outcome.output.decode(errors="replace"))


def _program(rollout: Rollout) -> str:
    return program_of(spoken_by(rollout) if rollout.answer is None else rollout.answer)
