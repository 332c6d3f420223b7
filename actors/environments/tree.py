"""A complete tree of responses: every node has as many children, every leaf is a response (arXiv:2402.10184)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import Field, PositiveInt, model_validator

from actors.environments.search import Found, Node, SearchEnvironment, SearchTools
from cluster.types import Task


class ResponseTree(SearchEnvironment):
    """`branching` next steps of every node down to `depth`; the leaves are the rollouts of the group.

    Tree-structured preference data (arXiv:2402.10184). B^D leaves of D segments of k tokens cost
    k (B + B² + … + B^D) sampled tokens, where as many responses apart cost k D B^D. A response that ends early is a
    leaf too. A segment ends at a string of `stop` or after `step_tokens`, the last one with the response: D, B and the
    borders of segments are unverified in the paper.
    """

    branching: PositiveInt = 2
    """B: children of a node."""
    depth: PositiveInt = 3
    """D: segments of a response."""
    step_tokens: PositiveInt | None = 16
    """Tokens of a segment at most; the last one is as long as the response."""
    open_end: bool = True
    """Whether the last segment goes on to the end of the response, else it is a segment like the others."""
    size: PositiveInt = Field(default=8)
    """Leaves of a tree: B^D or more."""

    @model_validator(mode="after")
    def _fits(self) -> ResponseTree:
        if self.size < self.branching**self.depth:
            raise ValueError(
                f"size = {self.size} rollouts, but branching = {self.branching} and depth = {self.depth} make "
                f"{self.branching**self.depth} leaves."
            )
        return self

    async def search(self, task: Task, tools: SearchTools) -> Sequence[Found]:
        async def leaves(node: Node) -> list[Node]:
            if node.ended or node.depth == self.depth:
                return [node]
            if self.open_end and node.depth == self.depth - 1:
                steps = await asyncio.gather(*(tools.finish(node) for _ in range(self.branching)))
                return [end for ends in steps for end in ends]
            children = await tools.extend(node, self.branching)
            return [leaf for below in await asyncio.gather(*map(leaves, children)) for leaf in below]

        return [Found(leaf) for leaf in await leaves(await tools.root())]
