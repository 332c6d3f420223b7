"""Responses to a prompt as texts that a reward model reads, and a judge who says which of two is better."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from cluster.types import Task
from rewards.judges.errors import Declined, Unreadable
from rewards.judges.templates.base import Item
from rewards.judges.templates.pairwise import Pairwise
from rewards.learned.caption_labels import Complete, replies_of
from rewards.learned.labels import BETWEEN, pair_of

_WRITTEN = re.compile(
    r"<question>(.*?)</question>\n(?:<reference_answer>(.*?)</reference_answer>\n)?<completion>(.*)</completion>", re.S
)
TEMPLATE = Pairwise(ties=True)


class Response(NamedTuple):
    question: str
    reference: str | None
    completion: str


def written(task: Task, completion: str, *, reference: bool = False) -> str:
    """Question, reference answer if it is wanted, and completion, in the tags of Cooper's VerifyRM
    (arXiv:2508.05613). A separator of label keys in them becomes U+FFFD."""
    known = f"<reference_answer>{task.answer}</reference_answer>\n" if reference else ""
    text = f"<question>{task.prompt}</question>\n{known}<completion>{completion}</completion>"
    return text.replace(BETWEEN, "\N{REPLACEMENT CHARACTER}")


def read(text: str) -> Response:
    """What `written` was given: whatever stands in the completion, the tags before it are ours."""
    found = _WRITTEN.fullmatch(text)
    assert found is not None, f"no text of ours: {text[:80]!r}"
    return Response(*found.groups())


class ResponseJudge:
    """Says of pairs of responses which is better, asked in both orders; implements `labeller.Judge`.

    A label is the mean of the two answers: 1, ½ or 0, or between where they disagree by a tie. Both must be readable.
    """

    def __init__(self, complete: Complete | None, *, judge: str) -> None:
        self._complete = complete
        self.version = hashlib.sha256(json.dumps([TEMPLATE.hash, judge]).encode()).hexdigest()[:12]

    async def __call__(self, keys: Sequence[str], /) -> list[float | None] | None:
        assert self._complete is not None, "a judge without `complete` cannot be asked"
        items = [item for key in keys for item in _both_orders(key)]
        replies = await replies_of(self._complete, [TEMPLATE.messages(item, "text") for item in items])
        if replies is None:
            return None
        values = [_value(reply, item) for reply, item in zip(replies, items, strict=True)]
        halves = zip(values[::2], values[1::2], strict=True)
        return [None if one is None or other is None else (one + 1 - other) / 2 for one, other in halves]


def _both_orders(key: str) -> tuple[Item, Item]:
    first, second = map(read, pair_of(key))
    texts = first.completion, second.completion
    return Item(first.question, texts), Item(first.question, texts[::-1])


def _value(reply: str | None, item: Item) -> float | None:
    if reply is None:
        return None
    try:
        return TEMPLATE.parse(reply, item, "text").values[0]
    except (Unreadable, Declined):
        return None
