"""MCTS*: a tree search that a learnt value of partial solutions guides (ReST-MCTS*, arXiv:2406.03816)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from actors.environments.search import Critic, Found, Node, SearchEnvironment, SearchTools
from actors.environments.tree_statistics import Visited, first_of_best, uct, weighted_value
from cluster.types import Task


class MctsStar(SearchEnvironment):
    """Select by V + c √(2 ln N_p / N), expand `branch` distinct steps, value them, roll out from the best, back up.

    Formulas and defaults by the released code of ReST-MCTS* (arXiv:2406.03816). The best child takes
    V ← (1 − α) V + α max of the values on a greedy roll-out; an expanded node is worth Σ N_c V_c / Σ N_c. The group
    holds the ends of episodes that the search came to, the most valued first; with fewer than `least_ends` of them the
    most valued other nodes are finished, which is ours, as is the value `prior` of what the critic does not know, such
    as before its model's first version. The released code also ends a solution by a question to the policy itself,
    which is not here: an episode's end is the environment's.
    """

    value: Critic = Critic(use="tree_value")
    """What values partial solutions, in [0, 1]."""
    step_filter: Critic | None = None
    """What judges each sampled step, such as SPC's critic; a step below `least_score` is sampled once more."""
    least_score: float = 0.5
    """Score of the filter that a step has at least; a step of unknown score stays."""
    branch: PositiveInt = 3
    """b: next steps that are sampled; equal texts are one step."""
    exploration: NonNegativeFloat = 0.4
    """c: 0.4 in the paper's evaluation, 0.7 by default in its class."""
    unvisited: NonNegativeFloat = 1.0
    """What a child that was never visited has beside its value."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """α: weight of the roll-out's highest value."""
    roll_steps: NonNegativeInt = 2
    """Steps of a roll-out."""
    roll_branch: PositiveInt = 1
    """Samples of each step of a roll-out, of which the most valued goes on."""
    end_gate: float = 0.9
    """A selected leaf of at least this value ends the search; above 1 nothing does."""
    iterations: PositiveInt = 50
    """Iterations at most."""
    prior: float = Field(default=0.5, ge=0, le=1)
    """Value of a node that the critic does not know."""
    least_ends: PositiveInt = 2
    """Ends that a group has at least."""

    async def search(self, task: Task, tools: SearchTools) -> Sequence[Found]:
        root = Visited(await tools.root(), 0.0)
        values: dict[int, float] = {}
        ends: dict[int, Node] = {}
        for _ in range(self.iterations):
            path = [root]
            while path[-1].children:
                path.append(self._selected(path[-1], tools))
            leaf = path[-1]
            if leaf is not root and leaf.value >= self.end_gate:
                break
            if leaf.node.ended:
                leaf.visits += 1
            else:
                children = await self._steps(leaf.node, self.branch, tools, values, ends)
                leaf.children = [Visited(node, values[node.id]) for node in children]
                if not leaf.children:
                    break
                best = first_of_best(leaf.children, lambda c: c.value, tools.random)
                highest = await self._rolled(best, tools, values, ends)
                best.value = (1 - self.alpha) * best.value + self.alpha * highest
                best.visits += 1
            for parent in reversed(path):
                if parent.children:
                    parent.visits += 1
                    parent.value = weighted_value([(c.value, c.visits) for c in parent.children])
        values |= {v.node.id: v.value for v in root.below() if not math.isnan(v.value)}
        await self._finish(root, tools, values, ends)
        kept = sorted(ends.values(), key=lambda node: -values.get(node.id, self.prior))[: self.size]
        return [Found(node, values=values) for node in kept]

    def _selected(self, parent: Visited, tools: SearchTools) -> Visited:
        def worth(child: Visited) -> float:
            if not child.visits:
                return child.value + self.unvisited
            return uct(child.value, parent.visits, child.visits, self.exploration)

        return first_of_best(parent.children, worth, tools.random)

    async def _steps(
        self, node: Node, n: int, tools: SearchTools, values: dict[int, float], ends: dict[int, Node]
    ) -> list[Node]:
        """Return distinct next steps of a node, valued; ends among them are noted."""
        sampled = await self._passed(await tools.extend(node, n), node, tools)
        steps = list({step.text: step for step in reversed(sampled) if step.text or step.ended}.values())
        scores = await tools.score(steps, self.value)
        values |= {s.id: float(v) if math.isfinite(v) else self.prior for s, v in zip(steps, scores, strict=True)}
        ends |= {step.id: step for step in steps if step.ended}
        return steps

    async def _passed(self, sampled: list[Node], parent: Node, tools: SearchTools) -> list[Node]:
        """Return the steps that the filter passes, and a new sample in the place of each that it does not."""
        if self.step_filter is None:
            return sampled
        scores = await tools.score(sampled, self.step_filter)
        kept = [s for s, score in zip(sampled, scores, strict=True) if not score < self.least_score]
        return kept + await tools.extend(parent, len(sampled) - len(kept))

    async def _rolled(
        self, start: Visited, tools: SearchTools, values: dict[int, float], ends: dict[int, Node]
    ) -> float:
        """Return the highest value on a greedy roll-out from a node, its own included."""
        here, highest = start.node, start.value
        for _ in range(self.roll_steps):
            if here.ended or not (steps := await self._steps(here, self.roll_branch, tools, values, ends)):
                break
            here = max(steps, key=lambda step: values[step.id])
            highest = max(highest, values[here.id])
        return highest

    async def _finish(self, root: Visited, tools: SearchTools, values: dict[int, float], ends: dict[int, Node]) -> None:
        open_ = [v for v in root.below() if not v.node.ended and not v.children] or [root]
        open_.sort(key=lambda v: -v.value)
        missing = min(self.least_ends, self.size) - len(ends)
        for i in range(missing):
            (end,) = await tools.finish(open_[i % len(open_)].node)
            ends[end.id] = end
