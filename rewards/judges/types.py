"""What is asked of a judge, what comes back, and who can be asked.

Request ─► Judge (a pool, or a wrapper around one) ─► Verdict
             └► Call ─► Transport (one replica) ─► Completion
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from cluster.types import FAILED, SCORED, Message, Provenance
from rewards.judges.templates import Item, Mode, Template

if TYPE_CHECKING:
    from rewards.judges.metrics import JudgeMetrics

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Call:
    """One chat completion."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int = 0
    """0: no log-probs are wanted."""
    choices: tuple[str, ...] = ()
    """The answer may be held to one of these; a transport that cannot ignores it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer and the likeliest at its place, log-probs in nats."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of one call, raw."""

    text: str
    finish: str
    """`stop`, `length`, or what the server calls it."""
    model: str
    tokens: tuple[Token, ...] = ()
    """Empty if no log-probs came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    version: str = ""
    """Version of the model's weights, if known: a live policy names the version that answered."""

    @property
    def signature(self) -> str:
        """Which model, and which version of it where that is known, as provenance names it."""
        return f"{self.model}@{self.version}" if self.version else self.model


class Transport(Protocol):
    """One replica of a judge: a URL, a server of the run, the live policy, a function."""

    name: str
    """For messages and metrics; holds no secret."""

    async def complete(self, call: Call) -> Completion:
        """Raises JudgeError."""
        ...

    async def tokens(self, text: str) -> Sequence[str] | None:
        """What `text` splits into for this model, None if there is no way to know. Raises JudgeError."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Request:
    """A question to a judge, and how it is put."""

    template: Template
    item: Item
    mode: Mode = "label"
    sample: int = 0
    """Which of several samples: votes differ in it, or a cache would make one of them."""
    temperature: float = 0.0
    max_tokens: int = 1024
    """Most tokens of the reasons and, in mode `text`, of the verdict."""
    logprobs: bool = True
    """Read the verdict as an expected value over its labels, where the judge gives log-probs."""
    min_mass: float = 0.8
    """Probability that the labels must have together (our threshold); with less the text is parsed."""

    def key(self, judge: str) -> str:
        """Equal for requests that `judge` (name and revision) answers alike; how an answer is read is not in it."""
        return hashlib.sha256(f"{judge}\n{self._asked}".encode()).hexdigest()[:32]

    @cached_property
    def _asked(self) -> str:
        asked = [(m.role, m.content) for m in self.messages]
        how = [self.mode, self.sample, self.temperature, self.max_tokens, self.logprobs]
        return hashlib.sha256(json.dumps([self.template.hash, asked, how]).encode()).hexdigest()

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        return self.template.messages(self.item, self.mode)

    @property
    def num_values(self) -> int:
        """Numbers in a verdict: one for a pair."""
        return len(self.item.responses) if self.template.num_responses is None else 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of the responses of one request."""

    values: tuple[float, ...]
    """In the template's units: one per response; of a pair one, the probability that the first is better. NaN unless
    scored."""
    state: int = SCORED
    note: str = ""
    """The verdict as written, or why there is none."""
    variance: float = NAN
    """Variance of the expected value over labels: the judge's uncertainty."""
    mass: float = NAN
    """Probability that the labels had together; NaN if the text was parsed."""
    log_odds: float = NAN
    """Log-odds of a pair: log P(A) − log P(B); NaN if the text was parsed."""
    judge: str = ""
    model: str = ""
    prompt_hash: str = ""
    attempt: int = 1
    latency_s: float = 0.0
    cost_tokens: int = 0
    cached: bool = False

    @staticmethod
    def unknown(num_values: int, note: str, *, state: int = FAILED) -> Verdict:
        return Verdict((NAN,) * num_values, state, note)

    @property
    def scored(self) -> bool:
        return self.state == SCORED

    def provenance(self) -> Provenance:
        return Provenance(
            self.judge, self.model, self.prompt_hash, self.attempt, self.latency_s, self.cost_tokens, self.note
        )


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that a judge is to continue, without a template: the answer is the text itself."""

    messages: tuple[Message, ...]
    max_tokens: int = 1024
    temperature: float = 0.0
    sample: int = 0
    """Which of several samples; samples differ in their seed."""

    def key(self, judge: str) -> str:
        """Equal for requests that `judge` (name and revision) answers alike."""
        return hashlib.sha256(f"{judge}\n{self.prompt_hash}\n{self.sample}".encode()).hexdigest()[:32]

    @cached_property
    def prompt_hash(self) -> str:
        """Return a hash of everything but the number of the sample."""
        asked = [[(m.role, m.content) for m in self.messages], self.temperature, self.max_tokens]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    @property
    def call(self) -> Call:
        return Call(self.messages, self.max_tokens, self.temperature, int(self.key("")[:7], 16))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge wrote in a conversation, or why there is nothing."""

    text: str | None
    """None where the judge failed; the provenance says why."""
    finish: str = ""
    """`stop`, `length` for an answer that was cut, or what the server calls it; empty where there is none."""
    provenance: Provenance = field(default_factory=Provenance)


class Judge(Protocol):
    """A pool or a wrapper. A judge that fails gives a verdict with the state `failed`; only ConfigError is raised."""

    name: str
    metrics: JudgeMetrics

    async def ask(self, request: Request) -> Verdict: ...


def merged(verdicts: Sequence[Verdict], values: tuple[float, ...], note: str = "") -> Verdict:
    """Several answers as one: costs add up, the slowest counts, models are all named."""
    models = ", ".join(sorted({v.model for v in verdicts if v.model}))
    judges = "+".join(dict.fromkeys(v.judge for v in verdicts if v.judge))
    return replace(
        verdicts[0],
        values=values,
        note=note or " | ".join(v.note for v in verdicts),
        judge=judges,
        model=models,
        variance=NAN,
        mass=NAN,
        log_odds=NAN,
        attempt=max(v.attempt for v in verdicts),
        latency_s=max(v.latency_s for v in verdicts),
        cost_tokens=sum(v.cost_tokens for v in verdicts),
        cached=all(v.cached for v in verdicts),
    )
