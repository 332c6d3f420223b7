"""An engine and a chat whose tokens are characters."""

from __future__ import annotations

import asyncio
from itertools import count
from random import Random

import numpy as np

from actors.engine import PrefixCounts, Sample
from cluster.types import VersionSpan


class Typist:
    """An engine whose tokens are characters; `write` answers the last observation."""

    exact, version, max_model_len = True, "1.0", 100_000

    def __init__(self, write, *, cut_in_turn=-1):
        self.write, self.turns, self.cut_in_turn = write, count(), cut_in_turn

    async def sample(self, prompt, *, max_tokens, temperature):
        text = "".join(map(chr, prompt)).rpartition("\x02")[2]
        ids = [*map(ord, self.write(text)), 0]
        finish = "length" if next(self.turns) == self.cut_in_turn else "stop"
        return Sample(np.array(ids, np.int32), np.zeros(len(ids), np.float32), (), finish)


class Branching(Typist):
    """Draws letters, and the end with one chance in `ends`, up to a stop token; its prefix cache has blocks of 4."""

    def __init__(self, *, ends=10**9, letters="abcdefgh", seed=0):
        super().__init__(None)
        self.random, self.ends, self.letters = Random(seed), ends, letters
        self.prefixes, self.blocks, self.num_sampled = PrefixCounts(), set(), 0

    async def sample(self, prompt, *, max_tokens, temperature, stop_tokens=()):
        prompt, cached = tuple(prompt), 0
        while cached + 4 <= len(prompt) and prompt[: cached + 4] in self.blocks:
            cached += 4
        self.prefixes.add(len(prompt), cached)
        await asyncio.sleep(0)
        ids = []
        while len(ids) < max_tokens and not (ids and (ids[-1] == 0 or ids[-1] in stop_tokens)):
            ids.append(0 if self.random.randrange(self.ends) == 0 else ord(self.random.choice(self.letters)))
        whole = (*prompt, *ids)
        self.blocks |= {whole[:n] for n in range(4, len(whole) + 1, 4)}
        self.num_sampled += len(ids)
        finish = "stop" if ids[-1] == 0 or ids[-1] in stop_tokens else "length"
        logprobs = np.array([-0.01 * (len(prompt) + i) for i in range(len(ids))], np.float32)
        return Sample(np.array(ids, np.int32), logprobs, (VersionSpan("1.0", 0, len(ids)),), finish)


class Letters:
    stop_tokens = (0,)

    def prompt(self, messages, tools=()):
        return [2, *map(ord, "\n".join(m.content for m in messages))]

    def observation(self, messages, *, after, tools=()):
        return self.prompt(messages)

    def opened(self, messages, *, first=True, tools=()):
        return ""

    def stopped_at(self, tokens, strings=()):
        return next((i + 1 for i, t in enumerate(tokens) if chr(t) in strings), None)

    def tokens_with(self, strings):
        return tuple(map(ord, strings))

    def text(self, tokens):
        return "".join(chr(t) for t in tokens if t)
