"""The agent of deploy/recipes/data/agent.py, in a worker whose engine writes down what it is asked and what it samples.

The record is $KANABO_ENGINE_RECORD, a line of JSON for each sample: prompt, tokens, log-probs.
"""

from __future__ import annotations

import json
import os
from typing import Any

from actors.engine import VllmEngine
from deploy.recipes.data.agent import solve

__all__ = ["solve"]
_sample = VllmEngine.sample


async def _recorded(self: VllmEngine, prompt: Any, **options: Any) -> Any:
    before = list(map(int, prompt))
    sample = await _sample(self, prompt, **options)
    if path := os.environ.get("KANABO_ENGINE_RECORD"):
        with open(path, "a") as file:  # noqa: ASYNC230
            file.write(json.dumps([before, sample.tokens.tolist(), sample.logprobs.tolist()]) + "\n")
    return sample


VllmEngine.sample = _recorded
