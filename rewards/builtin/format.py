"""Does the text have the wanted form?"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from cluster.thoughts import whole_text
from cluster.types import Group, Scores
from rewards.base import Reward, Services
from rewards.sandbox.pool import Target

TAG = re.compile(r"</?(?:think|answer)>")
MATCHES = Target("rewards.sandbox.patterns", "matches")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class Format(Reward):
    """1 where the whole text matches `pattern`; `.` also matches line breaks.

    The whole text begins with what the prompt has opened, such as `<think>`.

    `<think>` and `<answer>` occur no more often than the pattern spells them out: a second or nested block has no form.

    The pattern runs on foreign text in the sandbox, in a process that is ended after `timeout_s`: backtracking can take
    forever.
    """

    services = ("verify",)
    pattern: Annotated[str, AfterValidator(_compiles)] = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"
    """Regular expression for the whole text of a rollout."""
    anywhere: bool = False
    """A match somewhere in the text is enough."""
    timeout_s: float = 5.0
    """Seconds that matching the rollouts of one group may take."""

    async def prepare(self, services: Services) -> None:
        await services.sandbox.prepare(MATCHES)

    async def score(self, group: Group, services: Services) -> Scores:
        texts = [whole_text(r) for r in group.rollouts]
        return Scores.of(await matches(services, self.pattern, texts, self.timeout_s, anywhere=self.anywhere))


async def matches(
    services: Services, pattern: str, texts: list[str], timeout_s: float, *, anywhere: bool = False
) -> list[bool]:
    """For each text whether it has that form. Raises TimeoutError, or ValueError for an answer of another kind."""
    found = await services.verify(MATCHES, pattern, anywhere, texts, timeout_s=timeout_s)
    if not isinstance(found, list) or len(found) != len(texts) or not all(isinstance(f, bool) for f in found):
        raise ValueError(f"the pattern's process answered {found!r:.80} for {len(texts)} texts")
    return [f and tags_fit(pattern, text) for f, text in zip(found, texts, strict=True)]


def tags_fit(pattern: str, text: str) -> bool:
    """Whether no tag that a pattern spells out occurs more often in the text than in the pattern."""
    return all(text.count(tag) <= pattern.count(tag) for tag in set(TAG.findall(pattern)))
