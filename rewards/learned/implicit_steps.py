"""Rewards of turns from a second language model that learns which episodes succeed (OPRL, arXiv:2509.19199)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, product
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from cluster.types import Group, Provenance, Scores
from rewards.base import Services
from rewards.learned.episodes import STEP, Episode, at_step_ends, episodes_of
from rewards.learned.labels import pair, pair_of
from rewards.learned.network import LearnedNetwork, order_agreement
from rewards.learned.reward_model import scores_of
from rewards.learned.step_rewards import OutcomeReward, Told

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included."""


class ImplicitSteps(LearnedNetwork):
    """r_t = β Σ_{k ∈ turn t} (log π_φ(k) − log π_old(k)), π_φ trained on pairs of episodes (OPRL, arXiv:2509.19199).

    Loss −log σ(S(τ⁺) − S(τ⁻)), S the sum of r_t, or their mean as in the released code. π_φ starts as `encoder`,
    the policy's initial model; π_old are the log-probs that the tokens were sampled with. All of π_φ is trained, on
    one core, and published as a file: for small models. The paper trains one as large as the policy, at 10⁻⁶.
    """

    encoder: str = Field(default=...)
    """`initial`, or the directory of a causal language model with the policy's tokenizer."""
    lr: PositiveFloat = 1e-4
    batch_size: PositiveInt = 4
    """Pairs of a gradient step."""
    early_steps: PositiveInt = 8
    beta: PositiveFloat = 0.05
    """β."""
    episode: Literal["sum", "mean"] = "sum"
    """What an episode is worth in the loss: the sum of its turns (paper), or their mean (released code)."""
    compares: ClassVar[bool] = True
    num_outputs: ClassVar[int] = 1

    def _network(self) -> Any:
        return LogRatios(self.encoder, self.beta)

    def _steps(self, episodes: Iterable[str]) -> dict[str, Float[Tensor, " K"]]:
        net: Any = self._net
        return net.steps(list(dict.fromkeys(episodes)))

    def _loss(self, keys: Sequence[str], batch: Float[Tensor, " B"], values: Float[np.ndarray, " N"]) -> Tensor:
        pairs = [pair_of(key) for key in keys]
        steps = self._steps(chain.from_iterable(pairs))
        better, worse = ([steps[side] for side in sides] for sides in zip(*pairs, strict=True))
        return implicit_loss(better, worse, self.episode)

    @torch.no_grad()
    def predict(self, captions: Sequence[str]) -> Float[np.ndarray, " N"]:
        splits = [caption.rpartition(STEP) for caption in captions]
        steps = self._steps(episode for episode, _, _ in splits)
        return np.array([float(steps[episode][int(place)]) for episode, _, place in splits], np.float64)

    @torch.no_grad()
    def agreement(self, keys: Sequence[str], values: Float[np.ndarray, " N"]) -> float:
        pairs = [pair_of(key) for key in keys]
        steps = self._steps(chain.from_iterable(pairs))
        worth = np.array([[float(steps[side].sum()) for side in sides] for sides in pairs])
        return order_agreement(worth[:, 0], worth[:, 1], values) if len(keys) else float("nan")


class LogRatios(nn.Module):
    """Episodes as `written_episode` has them → β (log π_φ − log π_old) of each turn."""

    def __init__(self, path: str, beta: float) -> None:
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._beta = beta

    def steps(self, episodes: Sequence[str]) -> dict[str, Float[Tensor, " K"]]:
        """Return the rewards of each episode's turns."""
        parts = [(episode, part) for episode in episodes for part in json.loads(episode)]
        found: dict[str, list[Tensor]] = {episode: [] for episode in episodes}
        for batch in batches_of(parts):
            ratios = self._ratios([part for _, part in batch])
            for (episode, part), ratio in zip(batch, ratios, strict=True):
                found[episode] += [ratio[max(start, 1) - 1 : end - 1].sum() for start, end in part["turns"]]
        return {episode: self._beta * torch.stack(turns) for episode, turns in found.items()}

    def _ratios(self, parts: Sequence[dict[str, Any]]) -> Float[Tensor, "B L-1"]:
        """Log-ratios of all tokens but the first, one row a part; the padding at the end of a row says nothing."""
        tokens = pad_sequence([torch.tensor(part["tokens"]) for part in parts], batch_first=True)
        old = pad_sequence([torch.tensor(part["logprobs"]) for part in parts], batch_first=True)
        temperatures = torch.tensor([part["temperature"] for part in parts])[:, None, None]
        logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1] / temperatures
        return logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0] - old[:, 1:]


def batches_of(parts: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Yield runs of parts of at most `BATCH_TOKENS` padded tokens, or one part."""
    batch: list[tuple[str, dict[str, Any]]] = []
    longest = 0
    for one in parts:
        longest = max(longest, len(one[1]["tokens"]))
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch, longest = [], len(one[1]["tokens"])
        batch.append(one)
    if batch:
        yield batch


def implicit_loss(
    better: Sequence[Float[Tensor, " K"]], worse: Sequence[Float[Tensor, " K"]], how: Literal["sum", "mean"] = "sum"
) -> Float[Tensor, ""]:
    """Mean of −log σ(S⁺ − S⁻) over pairs of episodes, S the sum or the mean of an episode's step rewards; in nats."""

    def worth(episodes: Sequence[Tensor]) -> Tensor:
        return torch.stack([e.sum() if how == "sum" else e.mean() for e in episodes])

    return -logsigmoid(worth(better) - worth(worse)).mean()


def written_episode(group: Group, episode: Episode) -> str:
    """Return an episode as JSON: of each rollout its tokens, behaviour log-probs, temperature and turns."""
    parts = []
    for place in episode.rollouts:
        rollout = group.rollouts[place]
        turns = [[t.start, t.end] for t in rollout.turns if t.role == "assistant" and t.end > t.start]
        if turns:
            parts.append({
                "tokens": rollout.tokens.tolist(),
                "logprobs": [round(float(p), 6) for p in rollout.logprobs],
                "temperature": rollout.temperature or 1.0,
                "turns": turns,
            })  # fmt: skip
    return json.dumps(parts, separators=(",", ":"))


class Oprl(OutcomeReward):
    """β (log π_φ − log π_old) of each turn at its last token, π_φ the model `implicit_steps` that was published last.

    OPRL, released as iStar (arXiv:2509.19199): π_φ learns from all pairs of a success and a failure in a group, here at
    most `pairs`; a group without such a pair tells nothing. Success is an outcome above `success`. The advantage `oprl`
    adds the normalised step rewards to the episode's. Scores are by the newest model that is published, so a step's own
    pairs may or may not be in it: paper and released code differ in that.
    """

    model: str = "implicit_steps"
    """The section `[reward_models.NAME]`, with `use = "implicit_steps"` and `judge = ""`."""
    success: float = 0.0
    """Outcomes above it are successes."""
    pairs: PositiveInt = Field(default=16)
    """Most pairs of a group."""

    def labels_per_group(self, group_size: int) -> int | None:
        return None  # as many as the outcomes differ

    async def score(self, group: Group, services: Services) -> Scores:
        episodes = [e for e in episodes_of(group) if e.steps]
        if not episodes:
            return Scores.abstained(len(group), "no rollout has turns")
        outcomes = (await self._verifier().score(group, services)).values
        known = [(written_episode(group, e), float(outcomes[e.rollouts[-1]])) for e in episodes]
        won = [text for text, outcome in known if outcome > self.success]
        lost = [text for text, outcome in known if outcome <= self.success]
        told = {pair(a, b): 1.0 for a, b in islice(product(won, lost), self.pairs)}
        client = services.reward_model(self.model)
        await client.tell(told, version=Told.version)
        asked = [f"{text}{STEP}{k}" for (text, _), e in zip(known, episodes, strict=True) for k in range(len(e.steps))]
        values, version = await scores_of(client, asked)
        parts = np.split(values, np.cumsum([len(e.steps) for e in episodes])[:-1])
        tokens = at_step_ends(group, episodes, parts)
        found = Scores.of([t.sum() for t in tokens], Provenance(model=self.model), version=version)
        return Scores(found.values, found.state, found.provenance, version, tokens)
