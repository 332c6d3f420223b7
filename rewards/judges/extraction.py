"""A verdict out of an answer: an expected value over single-token labels, or the parsed text.

Pure: a stored answer is read again, by another rule or years later, with the same `read`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import ConfigError
from rewards.judges.errors import Unreadable
from rewards.judges.statistics import sigmoid
from rewards.judges.types import NAN, Completion, Request, Token

MOST_NATS = 0.01
"""A log-prob may exceed 0 by rounding, not by more; what does is no probability."""

MORE_ROOM = "A judge that thinks before it answers needs a larger max_tokens of the reward"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected value over labels."""

    value: float
    variance: float
    mass: float
    """Σ of the labels' probabilities, before they are made to sum to 1."""
    logprobs: Mapping[str, float]
    """Per label, nats."""


@dataclass(frozen=True, slots=True)
class Reading:
    values: tuple[float, ...]
    note: str
    variance: float = NAN
    mass: float = NAN
    log_odds: float = NAN


def expected_value(top: Iterable[tuple[str, float]], labels: Mapping[str, float]) -> Estimate | None:
    """Σ v·p_v / Σ p_v over the labels v (G-Eval, arXiv:2303.16634); None if none is among the likeliest tokens.

    Log-probs in nats, normalised or not: only the labels count. Forms of one label that differ in leading space or case
    are added up.
    """
    forms = {label.casefold(): label for label in labels}
    found: dict[str, float] = {}
    for token, logprob in top:
        label = forms.get(token.strip().casefold())
        if label is not None and -math.inf < logprob < MOST_NATS:
            found[label] = found.get(label, 0.0) + math.exp(logprob)
    mass = sum(found.values())
    if not mass:
        return None
    mean = sum(labels[v] * p for v, p in found.items()) / mass
    variance = sum((labels[v] - mean) ** 2 * p for v, p in found.items()) / mass
    return Estimate(mean, variance, mass, {v: math.log(p) for v, p in found.items()})


def preference(logprob_a: float, logprob_b: float) -> float:
    """P(A) = e^a / (e^a + e^b), nats."""
    return sigmoid(logprob_a - logprob_b)


def read(request: Request, completions: Sequence[Completion]) -> Reading:
    """The verdict in the answers to one request (two in mode `reason`: the reasons, then the verdict).

    Raises Unreadable, or Declined.
    """
    if request.mode == "reason" and len(completions) < 2 and completions[0].finish == "stop":
        raise Unreadable("there are reasons, but the verdict was not answered")
    for completion in {"label": (), "text": completions, "reason": completions[:1]}[request.mode]:
        if completion.finish != "stop":
            problem = f"the answer ended by '{completion.finish}' after {completion.completion_tokens} tokens"
            raise Unreadable(problem + (f"; {MORE_ROOM}" if completion.finish == "length" else ""))
    last, template = completions[-1], request.template
    try:
        parsed = template.parse(last.text, request.item, request.mode)
    except Unreadable as error:
        # A label may be near certain although an unlikely token was drawn in its place. Where a label was drawn and the
        # text holds none all the same, it begins a sentence ("A is worse") or a number ("1 mistake, so 4").
        first = _first_written(last.tokens)
        drawn = first is not None and _is_label(first.text, request.template.labels)
        estimate = None if request.mode == "text" or drawn else _estimate(request, first)
        if estimate is None and last.finish == "length":
            raise Unreadable(f"{error}; it was cut after {last.completion_tokens} tokens. {MORE_ROOM}") from error
        if estimate is None:
            raise
        parsed = None
        problem = str(error)
    else:
        estimate, problem = _estimate(request, _token_at(last, parsed.start)), ""
    note = last.text[-200:].strip() or problem
    if estimate is None:
        assert parsed is not None
        return Reading(parsed.values, note)
    a, b = (estimate.logprobs.get(label, NAN) for label in ("A", "B"))
    return Reading((estimate.value,), note, estimate.variance, estimate.mass, a - b)


def _estimate(request: Request, token: Token | None) -> Estimate | None:
    """None unless the labels have enough mass at this token."""
    if token is None or not request.logprobs or not request.template.labels:
        return None
    estimate = expected_value(token.top, request.template.labels)
    return estimate if estimate and estimate.mass >= request.min_mass else None


def _token_at(completion: Completion, start: int | None) -> Token | None:
    """The token that the character at `start` belongs to; None if tokens and text do not agree."""
    if start is None:
        return None
    written = ""
    for token in completion.tokens:
        written += token.text
        if len(written) > start:
            return token if completion.text.startswith(written) or written.startswith(completion.text) else None
    return None


def _is_label(text: str, labels: Iterable[str]) -> bool:
    return text.strip().casefold() in {label.casefold() for label in labels}


def _first_written(tokens: Sequence[Token]) -> Token | None:
    return next((t for t in tokens if t.text.strip()), None)


async def check_labels(
    labels: Iterable[str], split: Callable[[str], Awaitable[Sequence[str] | None]], where: str
) -> bool:
    """Is every label one token, bare or behind a space? False if the tokenizer cannot be asked.

    Raises ConfigError with the tokens that a label splits into.
    """
    for label in labels:
        bare, spaced = [await split(form) for form in (label, f" {label}")]
        if bare is None or spaced is None:
            return False
        # A tokenizer that does not know a character makes one token of it all the same.
        if any(len(form) == 1 and label.casefold() in form[0].casefold() for form in (bare, spaced)):
            continue
        made = " ".join(map(repr, bare))
        problem = f"is {len(bare)} tokens for this judge: {made}" if len(bare) > 1 else f"becomes {made} for this judge"
        raise ConfigError(
            f"{where}: the label '{label}' {problem}. A verdict is read at one token: use 1 to 5, 0 to 9 or letters, "
            "or set logprobs = false."
        )
    return True
