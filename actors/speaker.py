"""The live policy answering messages, as a judge of its own rollouts does. Nothing of it is trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from actors.chat import Chat
from actors.engine import Engine
from cluster.errors import DataError
from cluster.types import Message


@dataclass(frozen=True, slots=True)
class Written:
    """A token of an answer and the likeliest at its place, log-probs in nats."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    """With what the prompt opened, such as `<think>\\n`, which is the first of `tokens` then."""
    finish: str
    version: str
    """`epoch.step` of the weights that wrote it; of several, `first-last`."""
    tokens: tuple[Written, ...]
    """Without the one that ends it."""
    num_prompt_tokens: int
    num_tokens: int


class Speaker:
    """Answers on an engine that samples rollouts at the same time, `places` answers at once."""

    def __init__(self, engine: Engine, chat: Chat, places: int) -> None:
        self._engine, self._chat = engine, chat
        self._places = asyncio.Semaphore(places)

    async def answer(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int, top_logprobs: int
    ) -> Answer:
        """Raises DataError if the chat template refuses the messages or they leave no room for an answer."""
        prompt = self._chat.prompt(messages)
        room = self._engine.max_model_len - len(prompt)
        if room < 1:
            raise DataError(
                f"a question of {len(prompt)} tokens leaves no room for an answer: engine.max_model_len = "
                f"{self._engine.max_model_len}."
            )
        async with self._places:
            sample = await self._engine.sample(
                prompt,
                max_tokens=min(max_tokens, room),
                temperature=temperature,
                top_logprobs=top_logprobs,
                seed=seed,
            )
        versions = list(dict.fromkeys(span.version for span in sample.spans)) or [self._engine.version]
        ended = len(sample.tokens) > 0 and int(sample.tokens[-1]) in self._chat.stop_tokens
        shown = len(sample.tokens) - ended
        # The answer begins inside what the prompt opened; tokens and text must agree.
        opened = self._chat.opened(messages)
        begin = (Written(opened, 0.0, ()),) if opened else ()
        return Answer(
            opened + self._chat.text(sample.tokens.tolist()),
            sample.finish,
            versions[0] if len(versions) == 1 else f"{versions[0]}-{versions[-1]}",
            begin
            + tuple(
                Written(
                    self._text(int(token)),
                    float(sample.logprobs[i]),
                    tuple((self._text(t), p) for t, p in sample.top[i]) if sample.top else (),
                )
                for i, token in enumerate(sample.tokens[:shown])
            ),
            len(prompt),
            len(sample.tokens),
        )

    def _text(self, token: int) -> str:
        return self._chat.text([token])
