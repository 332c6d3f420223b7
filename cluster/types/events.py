"""What workers tell the driver through the buffer: one tagged struct for each kind of event."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.errors import DataError
from cluster.types.wire import encode


class Tagged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of events; the tag is their `kind`."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Something that a worker did, for the trace of the run."""

    name: str
    start_s: float
    """Unix time, as the end is: spans that follow one another share the same number."""
    end_s: float
    about: str = ""
    """What it is about: a group's id, a step, a version."""


class StepTaken(Tagged, frozen=True, kw_only=True, tag="step"):
    """A learner took a step, and its weights are released."""

    policy: str
    epoch: int
    step: int
    metrics: dict[str, float]
    spans: tuple[Span, ...] = ()


class SampleShown(Tagged, frozen=True, kw_only=True, tag="sample"):
    """A rollout for `samples.jsonl` and the console."""

    row: dict[str, Any]


class GroupDropped(Tagged, frozen=True, kw_only=True, tag="dropped"):
    """The buffer itself dropped a group with its rollouts; the script `prelude` writes this event."""

    policy: str
    id: str
    reason: str


class RolloutReport(Tagged, frozen=True, kw_only=True, tag="rollout"):
    """Counts of a rollout worker since its last report."""

    worker: str
    claims: bool
    """Whether it claims groups; a worker of another policy plays a part of them."""
    seconds: float = 0.0
    groups: int = 0
    rollouts: int = 0
    tokens: int = 0
    leases_lost: int = 0
    data_failures: int = 0
    last_failure: str = ""
    agents: dict[str, int] = {}
    """What endpoints count, by the names of `AGENT_METRICS`."""
    hung_threads: int = 0
    replaced_threads: int = 0
    prompt_tokens: int = 0
    """Tokens that the engine was given to continue, those of evaluations included."""
    cached_tokens: int = 0
    """Tokens of these that its prefix cache held."""
    spans: tuple[Span, ...] = ()


class RewardReport(Tagged, frozen=True, kw_only=True, tag="reward"):
    """Counts of a reward worker since its last report."""

    worker: str
    data_failures: int
    last_failure: str = ""
    asked: dict[str, int] = {}
    """Rollouts asked about, by reward."""
    failed: dict[str, int] = {}
    causes: dict[str, str] = {}
    """The last cause of a failure or an abstention, by reward."""
    spans: tuple[Span, ...] = ()


class JudgeReport(Tagged, frozen=True, kw_only=True, tag="judges"):
    """Metrics of a reward worker's judges and scorers."""

    worker: str
    metrics: dict[str, float]
    trouble: str = ""
    """Why judges do not answer, in words."""


class RewardModelReport(Tagged, frozen=True, kw_only=True, tag="reward_model"):
    """Metrics of a reward model that learns during the run."""

    worker: str
    metrics: dict[str, float]


class WeightsReceived(Tagged, frozen=True, kw_only=True, tag="update"):
    """An engine samples with new weights."""

    worker: str
    policy: str
    version: str
    fetch_s: float
    pause_s: float


class LogprobDiff(Tagged, frozen=True, kw_only=True, tag="logprob_diff"):
    """How far an engine's log-probs are from the learner's, nats."""

    policy: str
    version: str
    mean: float
    max: float
    floor: bool
    """Whether both sides had the initial weights: the difference is the precision's own."""


class WorkerHeld(Tagged, frozen=True, kw_only=True, tag="warning"):
    """What keeps a worker from going on, in a sentence for the terminal and the console."""

    message: str


RunEvent = (
    StepTaken
    | SampleShown
    | GroupDropped
    | RolloutReport
    | RewardReport
    | JudgeReport
    | RewardModelReport
    | WeightsReceived
    | LogprobDiff
    | WorkerHeld
)

_decoder = msgspec.msgpack.Decoder(RunEvent)


def kind_of(event: RunEvent) -> str:
    return str(type(event).__struct_config__.tag)


def encode_event(event: RunEvent) -> bytes:
    return encode(event)


def decode_event(data: bytes) -> RunEvent:
    """Return an event. Raises DataError for an unknown kind, and for fields that it does not have."""
    try:
        return _decoder.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise DataError(f"an event of the run cannot be read: {error}.") from error
