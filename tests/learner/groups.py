"""Groups for the learner's tests, and a policy small enough to differentiate by hand: a table of bigram logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from cluster.types import BatchRecord, Claim, Group, GroupReward, Rollout, ScoredGroup, Scores, Task
from learner.advantages.estimators import Advantage, GroupAdvantage
from learner.types import Mix

VOCABULARY = 11


def rollout(
    num_prompt: int, num_response: int, rng: np.random.Generator, *, vocabulary: int = VOCABULARY, **fields
) -> Rollout:
    """Random tokens, the response trained on, with made-up behaviour log-probs."""
    total = num_prompt + num_response
    mask = np.arange(total) >= num_prompt
    return Rollout(
        tokens=rng.integers(0, vocabulary, total).astype(np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, -rng.random(total) * 3, 0.0).astype(np.float32),
        text="",
        turns=(),
        **{"spans": (), "finish": "stop", **fields},
    )


def group(seq: int, rollouts: Sequence[Rollout], *, step: int = 0) -> Group:
    claim = Claim(f"policy/1/{seq}", "policy", 1, seq, seq, step, "token")
    return Group(claim, Task.of(str(seq), "?"), tuple(rollouts))


def random_groups(lengths: Sequence[Sequence[tuple[int, int]]], seed: int = 0, **fields) -> list[Group]:
    """One group per inner list, one rollout per (prompt, response) length."""
    rng = np.random.default_rng(seed)
    return [group(i, [rollout(p, r, rng, **fields) for p, r in g]) for i, g in enumerate(lengths)]


def with_common_prompts(groups: Sequence[Group]) -> list[Group]:
    """Each rollout begins as the first of its group does, as far as none of the two has a trained token."""

    def begun(rollout: Rollout, first: Rollout) -> Rollout:
        length = min(int(first.loss_mask.argmax()), int(rollout.loss_mask.argmax()))
        return replace(rollout, tokens=np.concatenate([first.tokens[:length], rollout.tokens[length:]]))

    return [replace(g, rollouts=tuple(begun(r, g.rollouts[0]) for r in g.rollouts)) for g in groups]


def ppo_groups(seed: int, vocabulary: int = 40) -> list[Group]:
    """Rollouts of one, two and three turns, some of them truncated, tempered."""
    rng, groups = np.random.default_rng(seed), []
    for seq in range(2):
        rollouts = []
        for i, turns in enumerate([(3, 5), (2, 4, 3, 6), (1, 2, 2, 1, 3, 9), (4, 1)]):
            said = rollout(0, sum(turns), rng, vocabulary=vocabulary, temperature=0.8)
            mask = np.repeat(np.arange(len(turns)) % 2 == 1, turns)
            logprobs = np.where(mask, said.logprobs, np.float32(0))
            finish = "length" if (i + seq) % 2 else "stop"
            rollouts.append(replace(said, loss_mask=mask, logprobs=logprobs, finish=finish))
        groups.append(group(seq, rollouts))
    return groups


def record_of(
    groups: Sequence[Group], rewards: Sequence[np.ndarray], advantage: Advantage | None = None, *, step: int = 0
) -> BatchRecord:
    estimator = advantage or GroupAdvantage()
    return BatchRecord(
        policy="policy",
        step=step,
        groups=tuple(g.id for g in groups),
        rewards=tuple(rewards),
        advantages=tuple(
            tuple(np.array([a], np.float32) for a in advantages)
            for advantages in estimator.advantages([scored(g, r) for g, r in zip(groups, rewards, strict=True)])
        ),
    )


def scored(group: Group, rewards: ArrayLike, **fields: Any) -> ScoredGroup:
    """Return a group whose scores were aggregated to these rewards; `fields` are those of its `GroupReward`."""
    return ScoredGroup(group, {}, reward=GroupReward(np.asarray(rewards, np.float64), **fields))


def estimate(estimator: Advantage, *rewards: ArrayLike) -> list[np.ndarray]:
    """Return the advantages [G] that an estimator gives groups of these rewards in one step."""
    rng, groups = np.random.default_rng(0), []
    for seq, values in enumerate(np.asarray(v, np.float64) for v in rewards):
        of_one = group(seq, [rollout(1, 1, rng) for _ in values])
        groups.append(scored(of_one, values, parts={"reward": values}))
    return [np.concatenate([np.atleast_1d(a) for a in found]) for found in estimator.advantages(groups)]


def each(mix: Callable[[Group, dict[str, Scores]], GroupReward]) -> Mix:
    """The mixer of a step that looks at one group at a time."""
    return lambda groups, scores: [mix(g, s) for g, s in zip(groups, scores, strict=True)]


def random_rewards(groups: Sequence[Group], seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(len(g)) for g in groups]


def bigram_logprobs(table: torch.Tensor) -> Callable:
    """`MicroBatch` → ([B, L] log-probs, [B, L] entropy) under a [V, V] table that predicts t from the token at t−1."""

    def logprobs(micro) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.as_tensor(np.array(micro.tokens))
        temperature = torch.as_tensor(np.array(micro.temperature))[:, 1:, None]
        log_softmax = (table[tokens[:, :-1]] / temperature).log_softmax(-1)
        chosen = log_softmax.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        pad = torch.nn.functional.pad
        return pad(chosen, (1, 0)), pad(entropy, (1, 0))

    return logprobs
