"""An engine and a chat whose tokens are characters."""

from __future__ import annotations

from itertools import count

import numpy as np

from actors.engine import Sample


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


class Letters:
    stop_tokens = (0,)

    def prompt(self, messages, tools=()):
        return [2, *map(ord, "\n".join(m.content for m in messages))]

    def observation(self, messages, *, after, tools=()):
        return self.prompt(messages)

    def opened(self, messages, *, first=True, tools=()):
        return ""

    def stopped_at(self, tokens):
        return None

    def text(self, tokens):
        return "".join(chr(t) for t in tokens if t)
