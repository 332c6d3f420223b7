"""One group as the page shows it: rollouts with their tokens as text, scores with what stands behind them."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from cluster.observability.console.groups import Found
from cluster.types import Rollout, Scores

log = logging.getLogger(__name__)


class Pieces:
    """Token ids → the text each adds. Without a tokenizer every token shows its number."""

    def __init__(self, model_dir: Path | None) -> None:
        self._model_dir = model_dir
        self._lock = threading.RLock()
        self._tokenizer: Any = None
        self._piece = lru_cache(200_000)(self._decode)

    def of(self, tokens: np.ndarray) -> list[str]:
        """One string per token; a character made of several tokens stands at the last of them."""
        if self._model_dir is None:
            return [f"⟨{id}⟩" for id in tokens.tolist()]
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = _tokenizer(self._model_dir)
                except Exception as error:  # whatever a library makes of a damaged file
                    log.warning("%s has no tokenizer that loads (%s): tokens are numbers", self._model_dir, error)
                    self._model_dir = None
                    return self.of(tokens)
            pieces, run = [], ()
            for previous, id in zip([None, *tokens[:-1].tolist()], tokens.tolist(), strict=True):
                run = (*run, id) if run else (id,)
                text = self._piece(previous, id) if len(run) == 1 else self._text(run)
                # Half a character decodes to U+FFFD; one that no four tokens complete is not text.
                if "\ufffd" in text and len(run) < 4:
                    pieces.append("")
                    continue
                pieces.append(text)
                run = ()
            return pieces

    def _text(self, ids: tuple[int, ...]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _decode(self, previous: int | None, id: int) -> str:
        """With the token before it: some tokenizers drop the space that begins a text."""
        if previous is None:
            return self._text((id,))
        both, first = self._text((previous, id)), self._text((previous,))
        return both[len(first) :] if both.startswith(first) else self._text((id,))


def _tokenizer(model_dir: Path) -> Any:
    """Whatever decodes. A tokenizer.json, as nearly every model has, loads in a moment; transformers takes seconds."""
    if (model_dir / "tokenizer.json").exists():
        return Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


def describe(found: Found, pieces: Pieces) -> dict[str, Any]:
    """Everything about a group, as plain values; NaN becomes null on the wire."""
    it, group = found.group, found.group.group
    task = msgspec.to_builtins(group.task)
    step = it.step if it.step > 0 else None
    unknown = (None,) * len(group)
    return {
        "id": group.id,
        "state": found.state,
        "step": step,
        "epoch": group.claim.epoch,
        "version": group.version,
        "staleness": step - 1 - group.version if step else None,
        "task": task,
        "scores": _scores(it.scores, len(group)),
        "rollouts": [
            _rollout(rollout, float(reward), advantage, learners, pieces)
            for rollout, reward, advantage, learners in zip(
                group.rollouts, it.rewards, it.advantages or unknown, it.logprobs or unknown, strict=True
            )
        ],
    }


def _scores(scores: dict[str, Scores], num_rollouts: int) -> list[dict[str, Any]]:
    """Each reward's evidence, one entry per rollout: value, state, and what stands behind it."""
    names = ("scored", "failed", "abstained")
    lines = []
    for reward, s in sorted(scores.items()):
        behind = s.provenance if len(s.provenance) == num_rollouts else s.provenance[:1] * num_rollouts
        rollouts = []
        for i in range(num_rollouts):
            proof = asdict(behind[i]) if behind else {}
            rollouts.append({"value": float(s.values[i]), "state": names[int(s.state[i])], **proof})
        lines.append({"reward": reward, "version": s.version, "rollouts": rollouts})
    return lines


def _rollout(
    rollout: Rollout, reward: float, advantage: np.ndarray | None, learners: np.ndarray | None, pieces: Pieces
) -> dict[str, Any]:
    versions = list(dict.fromkeys(span.version for span in rollout.spans))
    which = np.full(len(rollout.tokens), -1)
    for span in rollout.spans:
        which[span.start : span.end] = versions.index(span.version)
    mask = rollout.loss_mask
    # A rollout of unknown reward is left out of the step, whatever stands in its place in the record.
    credit = None if advantage is None or np.isnan(reward) else np.broadcast_to(advantage, len(mask))
    return {
        "text": rollout.text,
        "answer": rollout.answer,
        "finish": rollout.finish,
        "reward": reward,
        "environment_reward": rollout.reward,
        "temperature": rollout.temperature,
        "variant": rollout.variant,
        "attempt": rollout.attempt,
        "num_tokens": rollout.num_tokens,
        "advantage": None if credit is None or not mask.any() else float(credit[mask].mean()),
        "events": msgspec.to_builtins(rollout.events),
        "versions": versions,
        "tokens": {
            "text": pieces.of(rollout.tokens),
            "chosen": mask.astype(int).tolist(),
            "logprob": np.where(mask, rollout.logprobs, np.nan).round(4).tolist(),
            # What the learner gave it less what the engine did: numerics, and the steps in between.
            "difference": None if learners is None else (learners - rollout.logprobs).round(6).tolist(),
            "version": which.tolist(),
            "advantage": None if credit is None else np.where(mask, credit, np.nan).round(4).tolist(),
        },
    }
