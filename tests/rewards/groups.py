"""Groups made by hand."""

from __future__ import annotations

import numpy as np

from cluster.types import Claim, Group, Rollout, Task, VersionSpan


def rollout(text: str, *, num_tokens: int | None = None, answer: str | None = None) -> Rollout:
    n = len(text) if num_tokens is None else num_tokens
    return Rollout(
        np.arange(n + 2, dtype=np.int32),
        np.array([False, False] + [True] * n),
        np.zeros(n + 2, np.float32),
        text,
        (),
        (VersionSpan("0.0", 0, n + 2),),
        "stop",
        answer=answer,
    )


def group(*texts: str, answer: str | None = "85", prompt: str = "47+38=", seq: int = 0, **meta: object) -> Group:
    claim = Claim(f"policy/1/{seq}", "policy", 1, seq, seq, 0, "secret")
    task = Task.of(f"sums/{seq}", prompt, answer, source="sums", **meta)
    return Group(claim, task, tuple(rollout(t) for t in texts))
