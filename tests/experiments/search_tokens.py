"""Search against best of N at equal tokens, on sums with a calculator.

    python -m tests.experiments.search_tokens OUT.json

A value model learns from the trees of searches that know nothing (`rewards.learned.quality_values`). Then held-out sums
are searched under it, and as many tokens are spent on whole episodes of each, of which the same model picks one. Both
sides are also asked whether any of their ends is right. One engine, no run; needs vLLM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors import episode
from actors.chat import Chat
from actors.engine import Engine
from actors.environments.mcts_star import MctsStar
from actors.environments.search import Critic
from actors.episode import Limits
from actors.search import SearchSampler
from cluster.process.foreign_loops import ForeignLoops
from cluster.types import Claim, Group, Message, Rollout, Task, TreeNode
from rewards.learned.episodes import NAMED
from rewards.learned.quality_values import QualityValue, prefixes, quality_values

MOST = 1000
"""Episodes of one task at most."""


class ValueCritic:
    """The value model as a critic; without one it knows nothing."""

    def __init__(self, model: QualityValue | None = None) -> None:
        self.model = model

    async def score(self, critic: Critic, group: Group) -> np.ndarray:
        """[G] values of unfinished rollouts, NaN without a model."""
        if self.model is None:
            return np.full(len(group), np.nan)
        return self.model.predict([prefixes(group.task.prompt, r)[-1] for r in group.rollouts])

    async def complete(
        self, judge: str, messages: Sequence[Message], n: int, max_tokens: int, temperature: float
    ) -> list[str | None]:
        raise AssertionError("no judge is asked here")


@dataclass(frozen=True, slots=True)
class Spent:
    """What one way came to on one task."""

    right: bool
    """Whether the end that the value model picks is right."""
    any_right: bool
    tokens: int
    ends: int


class Bench:
    """One engine, one environment, and the two ways to spend tokens."""

    def __init__(self, engine: Engine, chat: Chat, environment: MctsStar, limits: Limits, seed: int = 0) -> None:
        self._engine, self._chat, self._environment, self._limits = engine, chat, environment, limits
        self._seed, self._loops = seed, ForeignLoops()

    def close(self) -> None:
        self._loops.close()

    async def searched(self, number: int, task: Task, critic: ValueCritic) -> tuple[Group, int]:
        """Return the group of one search and the tokens that it sampled."""
        sampler = SearchSampler(self._engine, self._chat, self._seed, critic, self._loops, "policy")
        claim = Claim(f"policy/1/{number}", "policy", 1, number, number, 0, "bench")
        group = await sampler.group(self._environment, claim, task, self._limits, _nothing)
        return group, sampler.take_tokens()

    async def sampled(self, task: Task, tokens: int) -> tuple[Group, int]:
        """Return whole episodes until they have as many tokens; the last one may go beyond."""
        found, spent = list[Rollout](), 0
        while spent < tokens and len(found) < MOST:
            rollout = await episode.play(
                self._engine, self._chat, self._environment.episode, task, "orig", self._limits, self._loops
            )
            found.append(_with_path(rollout))
            spent += rollout.num_tokens
        return Group(Claim("policy/1/0", "policy", 1, 0, 0, 0, "bench"), task, tuple(found)), spent

    async def labels(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Return what the trees of searches without a model say of their nodes."""
        found: dict[str, float] = {}
        for number, task in enumerate(tasks):
            group, _ = await self.searched(number, task, ValueCritic())
            ways = [[node.id for node in r.path] for r in group.rollouts]
            values = quality_values(ways, [_right(task, r) for r in group.rollouts])
            for rollout in group.rollouts:
                for node, text in zip(rollout.path, prefixes(task.prompt, rollout), strict=True):
                    if node.id in values:
                        found[f"{group.id}{NAMED}{text}"] = values[node.id]
        return found

    async def compared(self, tasks: Sequence[Task], model: QualityValue) -> list[tuple[Spent, Spent]]:
        """Return (search, best of N) for each task; N is what the search's tokens pay for."""
        result = []
        for number, task in enumerate(tasks):
            critic = ValueCritic(model)
            tree, tokens = await self.searched(number, task, critic)
            apart, spent = await self.sampled(task, tokens)
            result.append((await self._spent(tree, tokens, critic), await self._spent(apart, spent, critic)))
        return result

    async def _spent(self, group: Group, tokens: int, critic: ValueCritic) -> Spent:
        values = await critic.score(Critic(use="tree_value"), group)
        right = [_right(group.task, r) for r in group.rollouts]
        return Spent(right[int(np.argmax(values))], any(right), tokens, len(right))


def summary(pairs: Sequence[tuple[Spent, Spent]]) -> dict[str, Any]:
    """Return shares and means of both ways, and on how many tasks only one of them is right."""

    def of(side: Sequence[Spent]) -> dict[str, float]:
        names = ("right", "any_right", "tokens", "ends")
        return {name: float(np.mean([getattr(s, name) for s in side])) for name in names}

    return {
        "tasks": len(pairs),
        "search": of([search for search, _ in pairs]),
        "best_of_n": of([best for _, best in pairs]),
        "search_alone": sum(search.right > best.right for search, best in pairs),
        "best_of_n_alone": sum(best.right > search.right for search, best in pairs),
    }


def _right(task: Task, rollout: Rollout) -> bool:
    return rollout.answer is not None and rollout.answer == task.answer


def _with_path(rollout: Rollout) -> Rollout:
    """Return an episode as a path of its own, a turn a node, so that the value model reads it as it reads a tree."""
    nodes, turns = list[TreeNode](), list(rollout.turns)
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            answered = turns[i + 1].text if i + 1 < len(turns) else ""
            nodes.append(TreeNode(len(nodes), turn.end, turn.text + answered))
    return replace(rollout, path=tuple(nodes))


async def _nothing() -> None:
    """Renew no lease: nothing is claimed here."""


async def measured(seed: int, train: int, held_out: int) -> dict[str, Any]:
    """Return the comparison with one seed, on vLLM."""
    from transformers import AutoTokenizer

    from actors.engine import VllmEngine
    from actors.models import prepare
    from actors.tasks.calculator import SumsOfThree
    from cluster.config import load

    recipe = Path(__file__).parents[2] / "deploy" / "recipes" / "methods" / "rest_mcts.toml"
    config = load(recipe, [f"seed={seed}"])
    directory = str(prepare(config.model, seed))
    chat = Chat(AutoTokenizer.from_pretrained(directory))
    engine = VllmEngine(directory, config, stop_tokens=chat.stop_tokens, version="0.0")
    await engine.start()
    source, section = SumsOfThree(num_evaluation=held_out), config.rollout
    limits = Limits(section.max_tokens, section.max_turns, section.temperature)
    bench = Bench(engine, chat, MctsStar(**section.environment.options), limits, seed)
    try:
        labels = await bench.labels(source.train()[:train])
        model = QualityValue(early_steps=400, seed=seed)
        model.fit([*labels], np.array([*labels.values()]))
        pairs = await bench.compared(source.evaluation()[:held_out], model)
    finally:
        bench.close()
        await engine.close()
    prompt_tokens, cached_tokens = engine.prefixes.take()
    hits = cached_tokens / max(1, prompt_tokens)
    rows = [[asdict(one) for one in both] for both in pairs]
    return {"seed": seed, "labels": len(labels), **summary(pairs), "prefix_cache_hit_frac": hits, "pairs": rows}


def main() -> None:
    out, train, held_out = Path(sys.argv[1]), 200, 200
    found = [asyncio.run(measured(seed, train, held_out)) for seed in range(3)]
    out.write_text(json.dumps(found, indent=1), "utf-8")
    for one in found:
        print({key: value for key, value in one.items() if key != "pairs"})


if __name__ == "__main__":
    main()
