"""What a reward is: a plug-in that looks at a stored group and returns evidence.

    class Short(Reward):
        max_chars: int = 100

        async def score(self, group: Group, services: Services) -> Scores:
            return Scores.of([len(r.text) <= self.max_chars for r in group.rollouts])

Where it does not know it says so: None, NaN and infinity become the state `failed`, `Scores.abstained` is for what
the reward declines to judge. What it raises is counted and becomes `failed` too; nothing unknown ever becomes 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from cluster.errors import ConfigError, nearest
from cluster.plugins import Plugin
from cluster.process.threads import Threads
from cluster.types import Group, Message, Scores, Task
from rewards.sandbox.pool import Sandbox, Target
from rewards.scorers.types import TokenSequence

if TYPE_CHECKING:
    from rewards.judges.pool.pool import JudgePool
    from rewards.judges.types import Answer
    from rewards.learned.client import RewardModelClient
    from rewards.scorers.pool import LogprobScorer
    from rewards.scorers.types import TokenSequence

T = TypeVar("T")

UNVERSIONED = "0"
"""Version of a reward whose scores depend on the rollouts alone."""


class Services:
    """All that a reward may call beside its own code. Belongs to one reward worker."""

    def __init__(
        self,
        *,
        threads: int = 16,
        judges: Mapping[str, JudgePool] | None = None,
        reward_models: Mapping[str, RewardModelClient] | None = None,
        scorers: Mapping[str, LogprobScorer] | None = None,
        text: Callable[[Sequence[int]], str] | None = None,
        encode: Callable[[Sequence[Message]], tuple[list[int], list[int]]] | None = None,
    ) -> None:
        self._judges = judges or {}
        self._reward_models = reward_models or {}
        self._scorers = scorers or {}
        self._text, self._encode = text, encode
        self._sandbox = Sandbox()
        # A pool of its own: a function that never returns must not take the threads that speak to the buffer.
        self.threads = Threads(threads)
        self._logged: dict[str, list[float]] = {}

    async def thread(self, function: Callable[[], T]) -> T:
        """`function()` in a thread: for code that blocks. One that never returns is given up and its thread replaced.

        Code that holds the interpreter while it runs (a regular expression that backtracks, `9**9**9`) freezes the
        worker all the same: use `verify` for that.
        """
        return await self.threads.run(function)

    def log(self, name: str, value: float) -> None:
        """A number that a reward reports beside its scores; metrics hold its mean as `reward/logged_NAME`."""
        if math.isfinite(value):
            self._logged.setdefault(re.sub(r"\W+", "_", name, flags=re.ASCII)[:60], []).append(value)

    async def verify(self, function: Callable[..., Any] | Target, *args: Any, timeout_s: float) -> Any:
        """`function(*args)` in the sandbox, in a process that lives for this call and ends at its time.

        For whatever evaluates foreign text, and for what such text can make run forever (`9**9**9`). The function is
        one of a module, its arguments and what it returns are what JSON has. Check what comes back: a text that got to
        run may have written it. Raises TimeoutError, or SandboxError with what the function raised.
        """
        return await self._sandbox.call(function, args, timeout_s)

    @property
    def sandbox(self) -> Sandbox:
        """Where functions and programs run that nothing is known of; `verify` is its usual way in."""
        return self._sandbox

    def judge(self, name: str) -> JudgePool:
        """The judge of that name. Raises ConfigError."""
        if name not in self._judges:
            raise _unknown("judge", name, self._judges)
        return self._judges[name]

    async def complete(
        self,
        judge: str,
        messages: Sequence[Message],
        n: int = 1,
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        cached: bool = True,
    ) -> list[Answer]:
        """`n` samples of how the judge of that name continues a conversation.

        Deadline, queue, circuit breakers and archive are those of `[judges.NAME]`; a judge of kind `policy` is the live
        policy. A sample that failed is an `Answer` whose text is None and whose provenance says why. `cached`: a
        sample that was asked for before comes from the archive. Raises ConfigError for a judge that there is not, and
        ValueError for several samples at temperature 0, which would be one sample several times.
        """
        if n > 1 and temperature == 0:
            raise ValueError(f"n = {n} samples at temperature 0 are one sample {n} times: give a temperature.")
        pool = self.judge(judge)
        return await pool.answers(messages, n, max_tokens=max_tokens, temperature=temperature, cached=cached)

    async def encode(self, conversations: Sequence[Sequence[Message]]) -> list[TokenSequence]:
        """Each conversation's last message as tokens to be scored, and all that stands before its text as their prompt.

        The policy's tokenizer and chat template write them, in a thread. The last message may have any role: an
        assistant's is an answer, a user's is what a user says next. Raises ConfigError where there is no tokenizer, and
        DataError where the template refuses a conversation.
        """
        encode = self._encode
        if encode is None:
            raise ConfigError("a reward needs the policy's tokenizer, which only a run has. Score it within the run.")
        encoded = await self.thread(lambda: [encode(messages) for messages in conversations])
        return [TokenSequence(np.array(p, np.int32), np.array(t, np.int32)) for p, t in encoded]

    def metrics(self) -> dict[str, float]:
        """Return metrics of all judges, reward models and scorers, of threads, and what rewards logged since the last
        call."""
        known = (*self._judges.values(), *self._reward_models.values(), *self._scorers.values())
        found = {key: value for one in known for key, value in one.snapshot().items()}
        logged, self._logged = self._logged, {}
        found |= {f"reward/logged_{name}": sum(values) / len(values) for name, values in logged.items()}
        if self.threads.num_replaced:
            found["reward/num_hung_threads"] = float(self.threads.num_hung)
            found["reward/num_replaced_threads"] = float(self.threads.num_replaced)
        return found

    def trouble(self) -> str:
        """Judges and scorers that do not answer, and why; nothing if all do."""
        asked = (*self._judges.values(), *self._scorers.values())
        return "; ".join(filter(None, (one.trouble() for one in asked)))

    async def close_judges(self) -> None:
        """Before `close`, in the event loop that asked them."""
        for judge in self._judges.values():
            await judge.close()

    def reward_model(self, name: str) -> RewardModelClient:
        """The reward model of that name. Raises ConfigError."""
        if name not in self._reward_models:
            raise _unknown("reward model", name, self._reward_models)
        return self._reward_models[name]

    def scorer(self, name: str) -> LogprobScorer:
        """The model of that name that reads rollouts: log-probs and whole distributions. Raises ConfigError."""
        if name not in self._scorers:
            raise _unknown("scorer", name, self._scorers)
        return self._scorers[name]

    def text(self, tokens: Sequence[int]) -> str:
        """What the policy's tokenizer makes of tokens, special ones left out. Raises ConfigError where it is not there.

        Blocks: for a thread where there is much of it.
        """
        if self._text is None:
            raise ConfigError("a reward needs the policy's tokenizer, which only a run has. Score it within the run.")
        return self._text(tokens)

    def close(self) -> None:
        for follower in self._reward_models.values():
            follower.close()
        self._sandbox.close()
        self.threads.close()


class Reward(Plugin):
    """A reward. Its fields are its options, its class attributes say what it needs."""

    scope: ClassVar[Literal["rollout", "group", "task", "batch"]] = "rollout"
    """What a score depends on: one rollout alone, its whole group, all groups of a task, or a batch."""
    min_variants: ClassVar[int] = 1
    """Variants of the task that the group must hold rollouts of (`rollout.prompt_variants`)."""
    services: ClassVar[tuple[str, ...]] = ()
    """Methods of `Services` that it calls."""
    announced: ClassVar[bool] = False
    """Its version is a published model's, and who publishes tells the buffer."""

    def version(self) -> str:
        """What a score depends on beside the rollouts: a hash of template and judge, a reward model's number.

        When it changes, stored groups are scored again.
        """
        return UNVERSIONED

    def declines(self, task: Task) -> str:
        """Why it abstains from this task whatever is written, such as a missing reference; nothing if it does not."""
        return ""

    def evaluates(self) -> bool:
        """Whether it evaluates what was written, so that a run with it needs a sandbox."""
        return "verify" in self.services

    def scorers(self) -> Sequence[str]:
        """Names of the sections `[scorers.NAME]` that the reward reads with; by default its option `scorer`."""
        named = getattr(self, "scorer", None) if "scorer" in self.services else None
        return (named,) if isinstance(named, str) else ()

    def check(self, task: Task) -> None:
        """Raises ConfigError where a task of the data set lacks what the reward cannot do without."""

    async def prepare(self, services: Services) -> None:
        """Before the first group: raises ConfigError for what only a running service can tell."""

    async def refresh(self, services: Services) -> None:
        """After groups were handed out and before their versions are compared: look for what was published since."""

    async def score(self, group: Group, services: Services) -> Scores:
        raise NotImplementedError


def _unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """A service that was not given: there is none of the name, or the reward's class does not ask for the kind."""
    service = what.replace(" ", "_")
    return ConfigError(
        f"there is no {what} '{name}'. {nearest(name, known)}Known: {', '.join(sorted(known)) or 'none'}. "
        f"Add a section [{service}s.{name}], and '{service}' to the `services` of the reward's class; outside a "
        "run there is none."
    )
