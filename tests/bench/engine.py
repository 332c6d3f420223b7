"""vLLM as it is in every run, told how many tokens to write; it notes how long each rollout took."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine import Sample, VllmEngine
from tests.bench.lengths import draws


class Endless(VllmEngine):
    """No token ends a rollout: it is as long as it may be.

    vLLM stops at the model's own last token, whatever other ones it is told to stop at.
    """

    async def _generate(self, prompt: Sequence[int], **sampling: Any) -> Any:
        return await super()._generate(prompt, ignore_eos=True, **sampling)


class DrawnEngine(Endless):
    def __init__(self, *arguments: Any, stop_tokens: Sequence[int], version: str) -> None:
        super().__init__(*arguments, stop_tokens=(), version=version)
        self._lengths = draws(os.environ["KANABO_BENCH_LENGTHS"])
        self._seconds: list[float] = []

    async def sample(self, prompt: Sequence[int], *, max_tokens: int, temperature: float, **options: Any) -> Sample:
        if temperature == 0:  # evaluation tasks: not what is measured
            return await super().sample(prompt, max_tokens=1, temperature=0, **options)
        begun = time.monotonic()
        drawn = next(self._lengths)
        sample = await super().sample(prompt, max_tokens=drawn, temperature=temperature, **options)
        self._seconds.append(time.monotonic() - begun)
        return sample

    async def close(self) -> None:
        notes = Path(os.environ["KANABO_BENCH_NOTES"])
        await asyncio.to_thread(notes.write_text, json.dumps(self._seconds))
        await super().close()
