"""Whether a model computes trees of rollouts (`learner.shared_prefix`) as it computes the rollouts one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.config import LearnerSection
from cluster.errors import one_line
from cluster.types import MicroBatch
from learner.shared_prefix import shared_rows, tree_rows

NUM_SHARED, NUM_OWN = 6, 6
"""Tokens of the two sequences that are tried: common ones, and of each its own."""
TOLERANCE = 0.05
"""How far log-probs of a tree may lie from those of rows, as a share of what a missing mask would change."""


def packing_of(section: LearnerSection) -> str:
    """Return `learner.packing`, decided for this device where the recipe leaves it open."""
    if section.packing == "auto":
        return "rows" if torch.cuda.is_available() else "shared_prefix"
    return section.packing


def why_not_trees(config: Any, logprobs: Callable[[MicroBatch], Tensor], vocab_size: int) -> str:
    """Return why a model cannot compute trees; empty where it can. Collective where `logprobs` is.

    The attention must take any mask: by its configuration, and as two short sequences show. `logprobs` gives [B, L]
    nats, without gradient.
    """
    text = config.get_text_config()
    if text._attn_implementation != "sdpa":
        return f"its attention is '{text._attn_implementation}', not 'sdpa'"
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(text, "sliding_window", None)):
        return f"its layers are {', '.join(sorted(kinds)) or 'of a sliding window'}"
    first = np.arange(NUM_SHARED + NUM_OWN) % vocab_size
    second = np.concatenate([first[:NUM_SHARED], first[NUM_SHARED:][::-1]])
    (tree,) = tree_rows([first, second], range(2), 1000)
    try:
        rows = logprobs(_micro(np.stack([first, second])))
        shared = logprobs(replace(_micro(np.stack([first, second])), shared=shared_rows([tree])))
        masked_nothing = logprobs(_micro(np.concatenate([first, second[NUM_SHARED:]])[None]))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # whatever another's layers make of a mask
        return f"it takes no mask: {one_line(error)}"
    changed = (masked_nothing[0, -NUM_OWN + 1 :] - rows[1, -NUM_OWN + 1 :]).abs().max()
    apart = (shared - rows).abs().max()
    return "" if apart <= TOLERANCE * changed else f"its log-probs of a tree are {apart:.2g} nats from those of rows"


def _micro(tokens: np.ndarray) -> MicroBatch:
    none = np.zeros(tokens.shape, np.float32)
    number, column = np.indices(tokens.shape)
    return MicroBatch(
        tokens=tokens,
        positions=column,
        loss_mask=column > 0,
        logprobs=none,
        advantages=none,
        temperature=none + 1,
        rollout=number,
        staleness=np.zeros(tokens.shape, np.int64),
    )
