"""Tree search over options with three critics (AlphaLLM, arXiv:2404.12253)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from actors.environments.search import Critic, Found, Node, SearchEnvironment, SearchTools
from actors.environments.tree_statistics import (
    Visited,
    allowance,
    edit_distance,
    first_of_best,
    importance,
    uct,
)
from cluster.types import Task


class AlphaSearch(SearchEnvironment):
    """Select by Q / N + c √(ln N_p / N); add one child where a node may have more; reward it by critics; back up sums.

    Formulas and defaults by AlphaLLM's released code (arXiv:2404.12253). A new child, an option, is sampled again while
    it is nearer to a sibling than `merge_distance` edits, up to `merge_attempts` times, and then the farthest candidate
    is kept. A node may have max(n, min(⌊κ I⌋, 10)) children, I = max |q_c − mean q|, n being 3, 40 at the root and 1
    from `max_split_depth` on. Its reward is w_v value + w_f (mean outcome of fast roll-outs, of an end its own) + w_p
    process. The group holds the ends of the tree by Q / N, the best first, and the leaf of the highest Q / N finished.
    Ours: fast roll-outs are the policy's own, where the paper has a smaller model; what a critic does not know counts
    as a toss-up (0 of a signed value, ½ else); prompts are not synthesised.
    """

    value: Critic | None = None
    """Critic of partial solutions; without one w_v is 0."""
    value_scale: Literal["probability", "signed"] = "probability"
    """`probability`: p in [0, 1], which counts as 2 (p − ½); `signed`: in [−1, 1] as it is."""
    outcome: Critic = Critic(use="judge")
    """Critic of whole solutions, in [0, 1]: such as a judge with two levels, P(right) / (P(right) + P(wrong))."""
    process: Critic | None = None
    """Critic of steps, in [0, 1]; without one w_p is 0."""
    value_weight: float = 1.0
    """w_v: weight of the critic of partial solutions."""
    outcome_weight: float = 1.0
    """w_f: weight of the critic of whole solutions."""
    process_weight: float = 0.0
    """w_p: weight of the critic of steps."""
    fast_rollouts: PositiveInt = 4
    """Roll-outs to the end that value a new node."""
    exploration: NonNegativeFloat = 1.0
    """c: weight of what was seldom visited in the choice of a child."""
    iterations: PositiveInt = 40
    """New nodes, or visits of ends, at least."""
    least_terminals: NonNegativeInt = 40
    """Ends visited at least; the search goes on for up to twice the iterations to reach it."""
    children: PositiveInt = 3
    """Children of a node at first."""
    root_children: PositiveInt = 40
    """Children of the root."""
    max_split_depth: PositiveInt = 10
    """From this depth on a node has one child."""
    kappa: NonNegativeFloat = 2.0
    """κ: children of a node for each unit of its importance."""
    most_children: PositiveInt = 10
    """What κ I is cut at."""
    merge_distance: NonNegativeInt = Field(default=20)
    """Edits by which options differ at least; 0 merges none."""
    merge_attempts: PositiveInt = 5
    """Samples of an option at most."""

    async def search(self, task: Task, tools: SearchTools) -> Sequence[Found]:
        root = Visited(await tools.root(), 0.0)
        terminals = done = 0
        while done < self.iterations or (terminals < self.least_terminals and done < 2 * self.iterations):
            done += 1
            path = [root]
            while not path[-1].node.ended and len(path[-1].children) >= self.allowed(path[-1]):
                parent = path[-1]
                path.append(first_of_best(parent.children, lambda c, p=parent: self._worth(p, c), tools.random))
            if not path[-1].node.ended:
                child = Visited(await self._option(path[-1], tools), 0.0)
                path[-1].children.append(child)
                path.append(child)
            terminals += path[-1].node.ended
            reward = await self._reward(path[-1].node, tools)
            for visited in path:
                visited.visits += 1
                visited.value += reward
        return await self._found(root, tools)

    def allowed(self, visited: Visited) -> int:
        """Return how many children a node may have now."""
        depth = visited.node.depth
        if depth == 0:
            return self.root_children
        if depth >= self.max_split_depth:
            return 1
        current = max(self.children, len(visited.children))
        return allowance(current, importance([c.mean for c in visited.children]), self.kappa, self.most_children)

    def _worth(self, parent: Visited, child: Visited) -> float:
        return uct(child.mean, parent.visits, child.visits, self.exploration, factor=1.0)

    async def _option(self, parent: Visited, tools: SearchTools) -> Node:
        """Return a next step that differs from its siblings, or the one that differs most."""
        siblings = [c.node.text for c in parent.children]
        farthest: tuple[int, Node] | None = None
        for _ in range(self.merge_attempts):
            (node,) = await tools.extend(parent.node)
            nearest = min((edit_distance(node.text, text) for text in siblings), default=self.merge_distance)
            if nearest >= self.merge_distance:
                return node
            if farthest is None or nearest > farthest[0]:
                farthest = nearest, node
        assert farthest is not None
        return farthest[1]

    async def _reward(self, node: Node, tools: SearchTools) -> float:
        """Return the reward of a node by the critics, unknown ones as a toss-up."""
        ends = await tools.finish(node, self.fast_rollouts) if not node.ended else [node]
        outcomes, value, process = await asyncio.gather(
            tools.score(ends, self.outcome), self._one(node, self.value, tools), self._one(node, self.process, tools)
        )
        known = [float(v) if math.isfinite(v) else 0.5 for v in outcomes]
        if math.isnan(value):
            signed = 0.0
        else:
            signed = 2 * (value - 0.5) if self.value_scale == "probability" else value
        by_value, by_process = (w if c else 0.0 for w, c in (
            (self.value_weight, self.value), (self.process_weight, self.process),
        ))  # fmt: skip
        weights = by_value, self.outcome_weight, by_process
        return node_reward(signed, known, 0.5 if math.isnan(process) else process, weights)

    async def _one(self, node: Node, critic: Critic | None, tools: SearchTools) -> float:
        return math.nan if critic is None else float((await tools.score([node], critic))[0])

    async def _found(self, root: Visited, tools: SearchTools) -> list[Found]:
        tree = [v for v in root.below() if v is not root]
        values = {v.node.id: v.mean for v in tree}
        ends = [v.node for v in sorted(tree, key=lambda v: -v.mean) if v.node.ended]
        leaves = [v for v in tree if not v.children]
        best = max(leaves, key=lambda v: v.mean)
        if not best.node.ended:  # the best trajectory: its leaf, rolled to the end
            (end,) = await tools.finish(best.node)
            values[end.id] = best.mean
            ends.insert(0, end)
        return [Found(end, reward=values[end.id], values=values) for end in ends[: self.size]]


def node_reward(
    value: float, outcomes: Sequence[float], process: float, weights: tuple[float, float, float] = (1.0, 1.0, 0.0)
) -> float:
    """w_v value + w_f mean outcome + w_p process: the reward of a new node (AlphaLLM, arXiv:2404.12253)."""
    by_value, by_outcome, by_process = weights
    return by_value * value + by_outcome * sum(outcomes) / len(outcomes) + by_process * process
