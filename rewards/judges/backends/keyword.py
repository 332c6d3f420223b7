"""A judge that counts words: deterministic, with as much latency, failure and bias as one asks for.

For tests, benchmarks and dry runs of a recipe. It answers every template of ours, with log-probs, and any other
question with the number of its keywords; it reads nothing but the prompt it is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Sequence
from statistics import NormalDist

from rewards.judges.backends.mistakes import miscalculated
from rewards.judges.errors import JudgeServerError
from rewards.judges.types import Call, Completion, Token

RESPONSE = re.compile(r"<<<(?:RESPONSE|STEP)(?: \w+)?>>>\n(.*?)\n?<<<END (?:RESPONSE|STEP)(?: \w+)?>>>", re.DOTALL)
SCALE = re.compile(r"(?:one of|is one of):? ([^.\n]+)\.")
PAIR = "First message: "
CRITERION = re.compile(r"^(\d+)\. ", re.MULTILINE)
NORMAL_P99 = NormalDist().inv_cdf(0.99)


class KeywordJudge:
    """More of the `keywords` is better; every further one raises a score by a level, up to the top.

    A solution that it is to spoil gets a mistake in its last number, of one of eight kinds.
    """

    def __init__(
        self,
        keywords: Sequence[str] = ("good",),
        *,
        name: str = "keyword",
        latency_s: float = 0.0,
        latency_p99_s: float = 0.0,
        error_rate: float = 0.0,
        unreadable_rate: float = 0.0,
        first_bias_nats: float = 0.0,
        sharpness_nats: float = 4.0,
        noise_rate: float = 0.0,
    ) -> None:
        """The rates are shares of distinct calls, decided by a hash of prompt and seed, so that a run repeats itself.
        Of labels for captions a share of `noise_rate` is wrong.

        With `latency_p99_s` latencies are log-normal: `latency_s` is their median, this their 99th percentile.
        `first_bias_nats` favours the response shown first; `sharpness_nats` is how sure it is of a level of difference.
        """
        self.name, self._keywords = name, [k.casefold() for k in keywords]
        self.latency_s, self.error_rate, self.unreadable_rate = latency_s, error_rate, unreadable_rate
        self._latency_sigma = math.log(latency_p99_s / latency_s) / NORMAL_P99 if latency_p99_s else 0.0
        self._first_bias, self._sharpness = first_bias_nats, sharpness_nats
        self._noise_rate, self.num_calls = noise_rate, 0

    async def complete(self, call: Call) -> Completion:
        self.num_calls += 1
        chance = _chance(call)
        await asyncio.sleep(self.latency(call))
        if chance < self.error_rate:
            raise JudgeServerError(f"{self.name} fails on purpose, {self.error_rate:.0%} of the time.")
        texts = [message.content for message in call.messages]
        system, user = (texts[0], texts[1]) if len(texts) > 1 else ("", texts[0])
        prompt_tokens = sum(m.content.count(" ") + 1 for m in call.messages)
        if system == SPOIL:
            text, tokens = miscalculated(user.rpartition(SOLUTION)[2], int(_chance(call, "mistake") * 2**32)), ()
        elif system == SUBGOALS:
            text, tokens = _reached(user), ()
        elif TAGGED in system:
            text, tokens = self._graded(user), ()
        elif user.startswith(REWRITTEN):
            text, tokens = user.removeprefix(REWRITTEN).partition("\n\n<<<")[0], ()
        else:
            text, tokens = self._label(user, chance) if "<label>" in user else self._answer(system, user, call)
        if chance < self.error_rate + self.unreadable_rate:
            text, tokens = "I would rather not say.", ()
        return Completion(text, "stop", "keyword", tokens, prompt_tokens, len(text.split()), "1")

    async def tokens(self, text: str) -> Sequence[str] | None:
        """Characters."""
        return list(text)

    async def close(self) -> None:
        pass

    def latency(self, call: Call) -> float:
        """Seconds until it answers this call."""
        if not self._latency_sigma:
            return self.latency_s
        # Not by the chance of failing: those that fail would be the fast ones.
        chance = min(max(_chance(call, "latency"), 1e-6), 1 - 1e-6)
        return self.latency_s * math.exp(self._latency_sigma * NormalDist().inv_cdf(chance))

    def _answer(self, system: str, user: str, call: Call) -> tuple[str, tuple[Token, ...]]:
        hits = [self._hits(text) for text in RESPONSE.findall(user)]
        if "'Scores: …'" in system:
            low, high = map(int, re.findall(r"from (\d+) \(worst\) to (\d+)", system)[0])
            return "Counted.\nScores: " + ", ".join(str(min(low + h, high)) for h in hits), ()
        if "'Score: X'" in system:
            return f"Counted.\nScore: {min(25 * hits[0], 100)}", ()
        if "one line per criterion" in system:
            numbers = CRITERION.findall(system)
            return "\n".join(f"{i}: {'yes' if hits[0] >= int(i) else 'no'}" for i in numbers), ()
        if "Do not give the verdict yet" in system and len(call.messages) == 2:
            return f"I count {', '.join(map(str, hits))}.", ()
        if "-3: response A is much better" in system:
            return self._strength(user, hits), ()
        scale = SCALE.findall(call.messages[-1].content) or SCALE.findall(system)
        if not scale:  # a question of a reward's own
            return f"I count {self._hits(user)}.", ()
        labels = [label.strip() for label in scale[-1].split(",")]
        logprobs = self._logprobs(labels, hits)
        best = max(logprobs, key=lambda label: logprobs[label])
        top = tuple(sorted(logprobs.items(), key=lambda item: -item[1]))[: call.top_logprobs]
        verdict = Token(best, logprobs[best], top)
        if "'Verdict: X'" not in system:
            return best, (verdict,) if call.top_logprobs else ()
        before = Token("Counted.\nVerdict: ", 0.0)
        return f"{before.text}{best}", (before, verdict) if call.top_logprobs else ()

    def _graded(self, user: str) -> str:
        """Grade an answer, or a pair of which the first should be the better, from 1 to 10."""
        first, *others = (self._hits(text.partition("\n\n<<<")[0]) for text in user.split("ANSWER>>>\n")[1:])
        grade = 5 + 3 * (first - others[0]) if others else 1 + 3 * first
        return f"Counted. <score>{max(1, min(grade, 10))}</score>"

    def _strength(self, user: str, hits: Sequence[int]) -> str:
        """Verdict from −3 (A is much better) to 3; between equals the texts decide, so that the order does not."""
        levels = hits[0] - hits[1] + round(self._first_bias / self._sharpness)
        if levels == 0:
            first, second = RESPONSE.findall(user)
            levels = 1 if first < second else -1
        return f"Counted.\nVerdict: {-max(-3, min(levels, 3))}"

    def _label(self, user: str, chance: float) -> tuple[str, tuple[Token, ...]]:
        """Return the label of a caption, or of the first of two: the prompts of `rewards.learned.caption_labels`."""
        first, _, second = user.rpartition("Second message: ") if PAIR in user else ("", "", "")
        if first:
            difference = self._hits(first.rpartition(PAIR)[2]) - self._hits(second)
            value = 0.5 + 0.5 * (difference > 0) - 0.5 * (difference < 0)
        else:
            value = float(self._hits(user.rpartition("Message: ")[2]) > 0)
        # What is left of the chance beside the failures, so that noise and failures are independent.
        if (chance * 7919) % 1 < self._noise_rate:
            value = 1 - value
        word = next(word for word, known in PAIR_WORDS.items() if known == value)
        return f"<knowledge>None.</knowledge> <analysis>Counted.</analysis> <label>{word}</label>", ()

    def _logprobs(self, labels: Sequence[str], hits: Sequence[int]) -> dict[str, float]:
        if len(hits) == 2:
            difference = self._sharpness * (hits[0] - hits[1]) + self._first_bias
            scores = dict(zip(labels, (difference / 2, -difference / 2, 0.0), strict=False))
        else:
            level = min(hits[0], len(labels) - 1)
            scores = {label: -self._sharpness * abs(i - level) for i, label in enumerate(labels)}
        total = math.log(sum(math.exp(s) for s in scores.values()))
        return {label: s - total for label, s in scores.items()}

    def _hits(self, text: str) -> int:
        words = re.findall(r"\w+", text.casefold())
        return sum(words.count(keyword) for keyword in self._keywords)


def _reached(user: str) -> str:
    """Return the dictionary of sub-goals whose names the second observation has among what is held, or the first one's
    action names: no understanding, only words."""
    named = user.partition("Sub-goals: ")[2].partition("\n")[0].split(", ")
    before, _, after = user.partition("Action at time 0: ")
    held = [set(re.findall(r"\w+", text.partition("held: ")[2].partition(".")[0])) for text in (before, after)]
    done = set(re.findall(r"\w+", after.partition("\n")[0]))
    found = {name: name in held[1] - held[0] or ("open" in done and name in done) for name in named}
    return f"```python\n{found}\n```"


def _chance(call: Call, purpose: str = "") -> float:
    """[0, 1), the same for the same call."""
    text = repr([(m.role, m.content) for m in call.messages] + [call.seed]) + purpose
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


PAIR_WORDS = {"florp": 1.0, "drell": 0.0, "quimb": 0.5}

SPOIL = (
    "You rewrite solutions for training a checker. You are given a question and a solution that is right. Write a "
    "solution that looks as good, in the same style and of about the same length, but makes one plausible mistake and "
    "comes to a wrong answer. Answer with that solution alone; do not say that it is wrong, or where."
)
"""Cooper's negatives (arXiv:2508.05613): what their prompt asks for; the sentences are ours."""

SUBGOALS = (
    "You watch an agent and say which sub-goals one of its actions has reached. Judge by what is shown at the two "
    "times alone, and do not guess what will follow."
)
"""System prompt of the reward `subgoals`, for CALM (arXiv:2409.12798); the sentences are ours."""

TAGGED, REWRITTEN = "end with the grade in tags", "<<<PROMPT>>>\n"
"""What the prompts of the environment `anyprefer` have: grades from 1 to 10, and a system prompt to rewrite, which this
judge leaves as it is."""

SOLUTION = "\n\nRight solution:\n"
