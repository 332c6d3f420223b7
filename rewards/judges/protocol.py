"""A request as the calls that put it, and their answers as a verdict. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.types import Message
from rewards.judges.extraction import read
from rewards.judges.types import Call, Completion, Request, Verdict

TOP_LOGPROBS = 20
"""What OpenAI allows, and vLLM unless told otherwise."""
VERDICT_TOKENS = 8
"""A label, with room for a space or a quote before it. A second attempt has `Request.max_tokens`: a judge that thinks
first has not come to its label by then."""
RETRY_TEMPERATURE = 0.5
"""At temperature 0 another seed would give the same unreadable answer."""


def verdict_from(request: Request, completions: Sequence[Completion]) -> Verdict:
    """The verdict in raw answers, fresh or archived. Raises Unreadable, Declined."""
    reading, last = read(request, completions), completions[-1]
    return Verdict(
        reading.values,
        note=reading.note,
        variance=reading.variance,
        mass=reading.mass,
        log_odds=reading.log_odds,
        model=last.signature,
        prompt_hash=request.template.hash,
    )


def _seed(request: Request, attempt: int) -> int:
    return int(request.key("")[:7], 16) + attempt - 1


def first_call(request: Request, messages: tuple[Message, ...], attempt: int, *, room: bool = False) -> Call:
    """`room`: this judge thinks before it answers, even with a label."""
    temperature = request.temperature if attempt == 1 else max(request.temperature, RETRY_TEMPERATURE)
    labels = tuple(request.template.labels)
    top = TOP_LOGPROBS if request.logprobs and labels else 0
    seed = _seed(request, attempt)
    if request.mode == "label":
        return Call(
            messages, _verdict_tokens(request, attempt, room), temperature, seed, top, labels if attempt == 1 else ()
        )
    return Call(messages, request.max_tokens, temperature, seed, top if request.mode == "text" else 0)


def verdict_call(
    request: Request, messages: tuple[Message, ...], reasons: str, attempt: int, *, room: bool = False
) -> Call:
    """The reasons, and then the label alone: only this call may be held to the labels."""
    spoken = (*messages, Message("assistant", reasons), Message("user", request.template.follow_up()))
    labels = tuple(request.template.labels)
    top = TOP_LOGPROBS if request.logprobs else 0
    return Call(spoken, _verdict_tokens(request, attempt, room), 0.0, _seed(request, attempt), top, labels)


def _verdict_tokens(request: Request, attempt: int, room: bool) -> int:
    return VERDICT_TOKENS if attempt == 1 and not room else max(VERDICT_TOKENS, request.max_tokens)
