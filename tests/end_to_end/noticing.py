"""Something to notice without a game and without vLLM: an environment of captions; an engine that ends its turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import numpy as np

from actors.engine import Sample
from actors.environments.base import End, Environment, Observation
from cluster.types import Event, Task
from tests.fakes import FakeEngine

WORD_TOKENS = 3
NUM_CAPTIONS = 400
PAID = 0.25


class Noticing(Environment):
    """What is written gives a caption, half of them with the word `good`; every fourth pays PAID at once."""

    num_turns: int = 3

    async def play(self, task: Task, variant: str) -> AsyncGenerator[Observation | End, str]:
        counts, total = Counter[str](), 0.0
        text = yield Observation(task.variants[variant])
        for turn in range(self.num_turns):
            number = sum(ord(c) * 31**i for i, c in enumerate(text)) % NUM_CAPTIONS
            caption, paid = f"{'good' if number % 2 else 'bad'} sign {number}", PAID * (number % 4 == 0)
            counts[caption] += 1
            total += paid
            events = (Event(caption, turn, counts[caption], paid),)
            if turn == self.num_turns - 1:
                yield End(reward=total, events=events)
                return
            text = yield Observation.of("?", events=events, reward=total)


class Wordy(FakeEngine):
    """Writes at most WORD_TOKENS tokens, then the end of its turn, likely or not."""

    async def sample(self, prompt: Sequence[int], *, max_tokens: int, temperature: float, **asked: object) -> Sample:
        said = await super().sample(prompt, max_tokens=WORD_TOKENS, temperature=temperature)
        if said.finish == "stop":
            return said
        end, version = min(self._stop), said.spans[-1]
        spans = (*said.spans[:-1], replace(version, end=len(said.tokens) + 1))
        logprob = self._logprobs[said.tokens[-1], end]
        tokens, logprobs = np.append(said.tokens, np.int32(end)), np.append(said.logprobs, np.float32(logprob))
        return Sample(tokens, logprobs, spans, "stop")
