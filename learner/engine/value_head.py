"""The value head: one number per token on top of the policy's last hidden state."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cluster.types import MicroBatch


class ValueHead(nn.Module):
    """A causal LM and the value of every state in it. Starts at 0: the first step's advantages are the returns."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        head = policy.get_output_embeddings()
        self.value_head = nn.Linear(head.in_features, 1, dtype=head.weight.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.config = policy.config
        self._hidden: Tensor | None = None
        self._values: Tensor | None = None
        # Ahead of the row selection, which leaves the trained positions alone: what a turn ends with is valued too.
        head.register_forward_pre_hook(self._keep, prepend=True)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._hidden = args[0]

    def forward(self, **inputs: Any) -> Any:
        output = self.policy(**inputs)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        self._values = self.value_head(hidden).squeeze(-1).float()
        # Part of the output: DeepSpeed clears bf16 gradients when the first gradient reaches an output that it knows.
        output["state_values"] = self._values
        return output

    def values(self, micro: MicroBatch) -> Float[Tensor, "B L+1"]:
        """Return the values of the micro-batch that was just run, once: at t the value of the state in which token t is
        chosen.

        The last column is the state after a row's last token; the first is no state, and 0.
        """
        after, self._values = self._values, None
        assert after is not None
        if micro.shared is not None:
            after = after.flatten()[torch.as_tensor(micro.shared.place, device=after.device)]
        return nn.functional.pad(after.view(micro.tokens.shape), (1, 0))
